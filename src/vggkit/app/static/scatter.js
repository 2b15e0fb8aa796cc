// Accuracy against throughput: a circle's area is the number of parameters; those on the front are filled.

import { h, s, share, short, whole } from "./dom.js";
import { COLOURS } from "./chart.js";
import { t } from "./words.js";

const WIDTH = 560, HEIGHT = 320, LEFT = 76, BOTTOM = 40, ROOM = 40;

export function scatter(points) {
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)], room = (high - low) * 0.15 || Math.abs(high) * 0.1 || 1;
    return [low - room, high + room];
  };
  const [x1, x2] = range(points.map((point) => point.x)), [y1, y2] = range(points.map((point) => point.y));
  const px = (x) => LEFT + ROOM + ((x - x1) / (x2 - x1)) * (WIDTH - LEFT - 2 * ROOM);
  const py = (y) => HEIGHT - BOTTOM - ROOM - ((y - y1) / (y2 - y1)) * (HEIGHT - BOTTOM - 2 * ROOM);
  const most = Math.max(...points.map((point) => point.size));
  const circles = points.map((point, index) => {
    const colour = COLOURS[index % COLOURS.length], r = Math.max(5, 30 * Math.sqrt(point.size / most)), words = t("pointTold", point.name, share(point.y), whole(point.x), short(point.size));
    return s("g", {}, s("title", {}, words),
      s("circle", { cx: px(point.x), cy: py(point.y), r, fill: colour, "fill-opacity": point.isOnFront ? 0.45 : 0.12, stroke: colour }),
      s("text", { x: px(point.x), y: py(point.y) - r - 6, "text-anchor": "middle", class: "strong" }, point.name));
  });
  const axis = (x, y, words, anchor = "middle") => s("text", { x, y, "text-anchor": anchor }, words);
  return h("figure", {}, h("h3", {}, t("scatterTitle")), s("svg", { class: "chart", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": points.map((point) => t("pointTold", point.name, share(point.y), whole(point.x), short(point.size))).join("; ") },
    s("line", { class: "grid", x1: LEFT, x2: LEFT, y1: 8, y2: HEIGHT - BOTTOM }), s("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    ...[...new Set(points.map((point) => point.y))].map((y) => axis(LEFT - 6, py(y) + 4, share(y), "end")),
    ...[...new Set(points.map((point) => point.x))].map((x) => axis(px(x), HEIGHT - BOTTOM + 16, whole(x))),
    axis((WIDTH + LEFT) / 2, HEIGHT - 6, t("speed")), ...circles), h("figcaption", {}, t("scatterHelp")));
}
