// A chart of lines in SVG, with a cursor by mouse and by keys, and a table behind it for a reader of screens.

import { h, s, table } from "./dom.js";
import { t } from "./words.js";

const WIDTH = 640, HEIGHT = 240, LEFT = 48, RIGHT = 12, TOP = 12, BOTTOM = 28;
export const COLOURS = ["var(--action)", "var(--parameters)", "var(--macs)", "var(--warn)", "var(--normalisation)", "var(--muted)"];

/** Series are { name, x, y, colour, dots }; `options` say the names of the axes and the lowest and highest y. */
export function chart(title, series, options = {}) {
  const full = series.filter((line) => line.x.length);
  const xs = full.flatMap((line) => line.x), ys = full.flatMap((line) => line.y).filter((y) => y !== null);
  const figure = h("figure", { class: "chart-figure" }, h("h3", {}, title));
  if (!ys.length) return h("figure", {}, h("h3", {}, title), h("p", { class: "muted small" }, t("nothingYet")));
  const [x1, x2] = [Math.min(...xs), Math.max(...xs, Math.min(...xs) + 1)];
  const low = options.low ?? Math.min(0, ...ys), high = options.high ?? Math.max(...ys);
  const ticks = nice(low, high, 4), [y1, y2] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
  const px = (x) => LEFT + ((x - x1) / (x2 - x1)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - ((Math.min(Math.max(y, y1), y2) - y1) / (y2 - y1 || 1)) * (HEIGHT - TOP - BOTTOM);
  const parts = ticks.flatMap((tick) => [
    s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(tick), y2: py(tick) }),
    s("text", { x: LEFT - 6, y: py(tick) + 4, "text-anchor": "end" }, written(tick))]);
  for (const tick of nice(x1, x2, 5)) {
    if (tick >= x1 && tick <= x2) parts.push(s("text", { x: px(tick), y: HEIGHT - 8, "text-anchor": "middle" }, written(tick)));
  }
  for (const line of full) {
    const points = line.x.map((x, index) => [px(x), line.y[index]]).filter(([, y]) => y !== null).map(([x, y]) => [x, py(y)]);
    parts.push(s("path", { d: points.map(([x, y], index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join(""), color: line.colour, "stroke-dasharray": line.dashed ? "5 4" : null }));
    if (points.length < 40 && line.dots) parts.push(...points.map(([x, y]) => s("circle", { cx: x, cy: y, r: 3, fill: line.colour })));
  }
  const cursor = s("line", { y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--muted)", visibility: "hidden" });
  const told = h("p", { class: "small muted", "aria-live": "polite" }, t("chartHelp", options.xName ?? t("trainStep")));
  let at = null;
  const move = (x) => {
    at = Math.max(x1, Math.min(x2, x));
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, px(at));
    told.textContent = [`${options.xName ?? t("trainStep")} ${Math.round(at)}`, ...full.map((line) => `${line.name} ${written(line.y[nearest(line.x, at)])}`)].join(" · ");
  };
  const svg = s("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: "0", role: "img", "aria-label": `${title}: ${full.map((line) => `${line.name} ${written(line.y.at(-1))}`).join(", ")}`,
    onpointermove: (event) => {
      const box = svg.getBoundingClientRect();
      move(x1 + (((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * (x2 - x1));
    },
    onkeydown: (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); move((at ?? x2) + (by * (x2 - x1)) / 50); }
    },
  }, ...parts, cursor);
  const legend = h("p", { class: "row small" }, full.map((line) => {
    const key = h("span", { class: line.dashed ? "key hollow" : "key" });
    key.style.color = line.colour;
    return h("span", {}, key, line.name);
  }));
  const behind = h("details", {}, h("summary", { class: "small" }, t("asTable")));
  behind.addEventListener("toggle", () => {
    if (!behind.open || behind.children.length > 1) return;
    behind.append(...full.map((line) => table([options.xName ?? t("trainStep"), line.name], line.x.map((x, index) => [written(x), written(line.y[index])]))));
  });
  figure.append(legend, svg, told, behind);
  return figure;
}

function nearest(xs, at) {
  let best = 0;
  xs.forEach((x, index) => { if (Math.abs(x - at) < Math.abs(xs[best] - at)) best = index; });
  return best;
}

function nice(low, high, count) {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= raw);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 0.001; tick += step) found.push(Number(tick.toPrecision(12)));
  return found;
}

const written = (value) => (value === null || value === undefined ? "–" : Math.abs(value) >= 1000 ? value.toLocaleString("en-US") : String(Number(value.toPrecision(3))));
