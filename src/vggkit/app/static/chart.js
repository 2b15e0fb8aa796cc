// Charts in SVG: lines with a cursor (mouse and keys) and a table for screen readers.

import { clamped, h, s, table } from "./dom.js";
import { t } from "./words.js";

const WIDTH = 640, HEIGHT = 240, LEFT = 48, RIGHT = 12, TOP = 12, BOTTOM = 40;
export const COLOURS = [
  "var(--action)", "var(--parameters)", "var(--macs)", "var(--warn)", "var(--normalisation)", "var(--muted)"];

/** Series are { name, x, y, colour, dots, dashed }; the axis spans `low` to `high`, and clips values beyond. */
export function chart(title, series, { low, high }) {
  const lines = series.filter((line) => line.x.length);
  if (lines.every((line) => line.y.every((value) => value === null))) {
    return h("figure", {}, h("h3", {}, title), h("p", { class: "muted small" }, t("nothingYet")));
  }
  const xs = lines.flatMap((line) => line.x), [x1, x2] = [Math.min(...xs), Math.max(...xs, Math.min(...xs) + 1)];
  const ticks = nice(low, high, 4), [y1, y2] = [Math.min(low, ticks[0]), Math.max(high, ticks.at(-1))];
  const px = (x) => LEFT + ((x - x1) / (x2 - x1)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - (clamped(y - y1, y2 - y1) / (y2 - y1 || 1)) * (HEIGHT - TOP - BOTTOM);
  const along = nice(x1, x2, 5).filter((tick) => tick >= x1 && tick <= x2);
  const cursor = s("line", { y1: TOP, y2: HEIGHT - BOTTOM, stroke: "var(--muted)", visibility: "hidden" });
  const told = h("p", { class: "small muted", "aria-live": "polite" }, t("chartHelp", t("trainStep")));
  let at = x2;

  function move(x) {
    at = Math.max(x1, Math.min(x2, x));
    cursor.setAttribute("visibility", "visible");
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, px(at));
    const values = lines.map((line) => `${line.name} ${written(line.y[nearest(line.x, at)])}`);
    told.textContent = [`${t("trainStep")} ${Math.round(at)}`, ...values].join(" · ");
  }

  function pointed(event) {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * WIDTH;
    move(x1 + ((x - LEFT) / (WIDTH - LEFT - RIGHT)) * (x2 - x1));
  }

  function keyed(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by) return;
    event.preventDefault();
    move(at + (by * (x2 - x1)) / 50);
  }

  const last = lines.map((line) => `${line.name} ${written(line.y.at(-1))}`).join(", ");
  const svg = s("svg", {
    class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: "0", role: "img", "aria-label": `${title}: ${last}`,
    onpointermove: pointed, onkeydown: keyed,
  },
  ticks.map((tick) => [
    s("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(tick), y2: py(tick) }),
    s("text", { x: LEFT - 6, y: py(tick) + 4, "text-anchor": "end" }, written(tick))]),
  along.map((tick) => s("text", { x: px(tick), y: HEIGHT - 22, "text-anchor": "middle" }, written(tick))),
  s("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 5, "text-anchor": "middle" }, t("trainStep")),
  lines.map((line) => drawn(line, px, py)), cursor);
  return h("figure", {}, h("h3", {}, title), legend(lines), svg, told, behind(lines));
}

function drawn({ x, y, colour, dashed, dots }, px, py) {
  const points = x.map((at, index) => [at, y[index]]).filter(([, value]) => value !== null)
    .map(([at, value]) => [px(at), py(value)]);
  const d = points.map(([at, value], index) => `${index ? "L" : "M"}${at.toFixed(1)} ${value.toFixed(1)}`).join("");
  return [
    s("path", { d, color: colour, "stroke-dasharray": dashed ? "5 4" : null }),
    dots && points.length < 40 ? points.map(([cx, cy]) => s("circle", { cx, cy, r: 3, fill: colour })) : ""];
}

function legend(lines) {
  return h("p", { class: "row small" }, lines.map((line) => {
    const key = h("span", { class: line.dashed ? "key hollow" : "key" });
    key.style.color = line.colour;
    return h("span", {}, key, line.name);
  }));
}

/** All points as tables, built when the reader opens them. */
function behind(lines) {
  const made = ({ name, x, y }) => table([t("trainStep"), name], x.map((at, index) => [at, y[index]].map(written)));
  const details = h("details", {
    ontoggle: () => details.open && details.children.length === 1 && details.append(...lines.map(made)),
  }, h("summary", { class: "small" }, t("asTable")));
  return details;
}

function nearest(xs, at) {
  return xs.reduce((best, x, index) => (Math.abs(x - at) < Math.abs(xs[best] - at) ? index : best), 0);
}

function nice(low, high, count) {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= raw);
  const found = [];
  for (let tick = Math.ceil(low / step) * step; tick <= high + step * 0.001; tick += step) {
    found.push(Number(tick.toPrecision(12)));
  }
  return found;
}

function written(value) {
  if (value === null || value === undefined) return "–";
  return Math.abs(value) >= 1000 ? value.toLocaleString("en-US") : String(Number(value.toPrecision(3)));
}
