// What one unit of a map sees of the image: its receptive field, moved by the mouse and by the arrow keys.

import { arrow, clamped, h, options, s } from "./dom.js";
import { t } from "./words.js";

const SIDE = 240, VIEW = `0 0 ${SIDE} ${SIDE}`;

export function receptiveFields(place, chosen) {
  const state = { layers: [], size: 0, name: null, y: 0, x: 0 };
  const select = h("select", { "aria-label": t("layer"), onchange: () => choose(select.value) });
  const image = s("svg", { viewBox: VIEW, role: "img" }), map = s("svg", {
    viewBox: VIEW, tabindex: "0", role: "application", onpointermove: point, onpointerdown: point, onkeydown: key,
  });
  const mapCaption = h("figcaption"), text = h("p", { "aria-live": "polite" });
  place.replaceChildren(h("p", { class: "small muted" }, t("seesHelp")), select,
    h("div", { class: "sees" }, h("figure", {}, map, mapCaption),
      h("figure", {}, image, h("figcaption", {}, t("theImage")))), text);

  const layerOf = (name) => state.layers.find((layer) => layer.name === name);
  const sideOf = (layer) => layer.output_shape[2];

  function show(layers, size) {
    state.layers = layers.filter((layer) => layer.output_shape.length === 4);
    state.size = size;
    const last = state.layers.findLast((layer) => layer.kind === "conv") ?? state.layers[0];
    select.replaceChildren(...options(state.layers.map((layer) => layer.name)));
    choose(layerOf(state.name) ? state.name : last.name);
  }

  function choose(name) {
    const layer = layerOf(name);
    if (!layer) return;
    if (name !== state.name) state.y = state.x = Math.floor(sideOf(layer) / 2);
    state.name = select.value = name;
    chosen(name);
    put(state.y, state.x);
  }

  function point(event) {
    const box = map.getBoundingClientRect(), side = sideOf(layerOf(state.name));
    const at = (value, length) => Math.floor((value / length) * side);
    put(at(event.clientY - box.top, box.height), at(event.clientX - box.left, box.width));
  }

  function key(event) {
    const move = arrow(event);
    if (move) put(state.y + move[0], state.x + move[1]);
  }

  /** Choose the unit at a row and a column, or the nearest one inside the map. */
  function put(row, column) {
    const layer = layerOf(state.name), side = sideOf(layer);
    Object.assign(state, { y: clamped(row, side - 1), x: clamped(column, side - 1) });
    paint(layer, side);
  }

  function paint({ receptive_field: field, stride, first }, side) {
    const cell = SIDE / side, pixel = SIDE / state.size, { name, y, x } = state;
    const frame = () => s("rect", {
      x: 0.5, y: 0.5, width: SIDE - 1, height: SIDE - 1, fill: "var(--shade)", stroke: "var(--line)",
    });
    const line = (ends) => s("line", { x1: 0, x2: SIDE, y1: 0, y2: SIDE, stroke: "var(--line)", ...ends });
    const lines = Array.from({ length: side <= 32 ? side - 1 : 0 }, (_, index) => (index + 1) * cell)
      .map((at) => [line({ x1: at, x2: at }), line({ y1: at, y2: at })]);
    const width = Math.max(cell, 4), corner = (at) => (at + 0.5) * cell - width / 2;
    const mark = { x: corner(x), y: corner(y), width, height: width, fill: "var(--convolution)" };
    map.replaceChildren(frame(), ...lines.flat(), s("rect", mark));
    const seen = (at) => [0, field].map((end) => clamped(first + stride * at + end, state.size));
    const [[top, bottom], [left, right]] = [seen(y), seen(x)], drawn = (pixels) => Math.max(1, pixels * pixel);
    image.replaceChildren(frame(), s("rect", {
      x: left * pixel, y: top * pixel, width: drawn(right - left), height: drawn(bottom - top),
      fill: "var(--convolution)", "fill-opacity": 0.55, stroke: "var(--action)",
    }));
    mapCaption.textContent = `${t("mapOf", name)}, ${side} × ${side}`;
    const isPadded = [bottom - top, right - left].some((pixels) => pixels < field);
    const place = [name, y + 1, x + 1, field, state.size, stride];
    text.textContent = t("seesText", ...place) + (isPadded ? t("seesPadding") : "");
    for (const each of [map, image]) each.setAttribute("aria-label", text.textContent);
  }
  return { show, choose };
}
