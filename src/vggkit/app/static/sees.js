// What one unit of a map sees of the image: its receptive field, moved by the mouse and by the arrow keys.

import { arrow, h, s } from "./dom.js";
import { t } from "./words.js";

const SIDE = 240;

export function receptiveFields(place, chosen) {
  const state = { layers: [], size: 0, name: null, y: 0, x: 0 };
  const select = h("select", { "aria-label": t("layer"), onchange: (event) => choose(event.target.value) });
  const map = s("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, tabindex: "0", role: "application", onpointermove: point, onpointerdown: point, onkeydown: key });
  const image = s("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" });
  const mapCaption = h("figcaption"), text = h("p", { "aria-live": "polite" });
  place.replaceChildren(h("p", { class: "small muted" }, t("seesHelp")), select,
    h("div", { class: "sees", }, h("figure", {}, map, mapCaption), h("figure", {}, image, h("figcaption", {}, t("theImage")))), text);

  const layerOf = (name) => state.layers.find((layer) => layer.name === name);
  const sideOf = (layer) => layer.output_shape[2] ?? 1;

  function show(layers, size) {
    state.layers = layers.filter((layer) => layer.output_shape.length === 4);
    state.size = size;
    const last = state.layers.findLast((layer) => layer.kind === "conv") ?? state.layers[0];
    select.replaceChildren(...state.layers.map((layer) => h("option", { value: layer.name }, layer.name)));
    choose(layerOf(state.name) ? state.name : last.name);
  }

  function choose(name) {
    const layer = layerOf(name);
    if (!layer) return;
    if (name !== state.name) state.y = state.x = Math.floor(sideOf(layer) / 2);
    state.name = select.value = name;
    chosen(name);
    paint();
  }

  function point(event) {
    const box = map.getBoundingClientRect(), side = sideOf(layerOf(state.name));
    const at = (value, length) => Math.max(0, Math.min(side - 1, Math.floor((value / length) * side)));
    state.x = at(event.clientX - box.left, box.width);
    state.y = at(event.clientY - box.top, box.height);
    paint();
  }

  function key(event) {
    const move = arrow(event);
    if (!move) return;
    const side = sideOf(layerOf(state.name));
    state.y = Math.max(0, Math.min(side - 1, state.y + move[0]));
    state.x = Math.max(0, Math.min(side - 1, state.x + move[1]));
    paint();
  }

  function paint() {
    const layer = layerOf(state.name), side = sideOf(layer);
    state.y = Math.min(state.y, side - 1);
    state.x = Math.min(state.x, side - 1);
    const cell = SIDE / side, pixel = SIDE / state.size;
    const lines = side <= 32 ? Array.from({ length: side - 1 }, (_, i) => (i + 1) * cell).flatMap((at) => [
      s("line", { x1: at, x2: at, y1: 0, y2: SIDE, stroke: "var(--line)" }), s("line", { y1: at, y2: at, x1: 0, x2: SIDE, stroke: "var(--line)" })]) : [];
    const frame = () => s("rect", { x: 0.5, y: 0.5, width: SIDE - 1, height: SIDE - 1, fill: "var(--shade)", stroke: "var(--line)" });
    const mark = Math.max(cell, 4);
    map.replaceChildren(frame(), ...lines, s("rect", { x: (state.x + 0.5) * cell - mark / 2, y: (state.y + 0.5) * cell - mark / 2, width: mark, height: mark, fill: "var(--convolution)" }));
    const [top, left] = [layer.first + layer.stride * state.y, layer.first + layer.stride * state.x];
    const clip = (value) => Math.max(0, Math.min(state.size, value));
    const [y1, y2, x1, x2] = [clip(top), clip(top + layer.receptive_field), clip(left), clip(left + layer.receptive_field)];
    image.replaceChildren(frame(), s("rect", { x: x1 * pixel, y: y1 * pixel, width: Math.max(1, (x2 - x1) * pixel), height: Math.max(1, (y2 - y1) * pixel), fill: "var(--convolution)", "fill-opacity": 0.55, stroke: "var(--action)" }));
    mapCaption.textContent = `${t("mapOf", state.name)}, ${side} × ${side}`;
    text.textContent = t("seesText", state.name, state.y + 1, state.x + 1, layer.receptive_field, state.size, layer.stride);
    map.setAttribute("aria-label", text.textContent);
    image.setAttribute("aria-label", text.textContent);
  }
  return { show, choose };
}
