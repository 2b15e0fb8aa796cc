// What is shown of a layer: one map enlarged, one output taken apart, or the outputs of a fully connected layer.

import { arrow, ask, barRow, button, clamped, fact, h, into, mono, picture } from "./dom.js";
import { t } from "./words.js";

/** A map in which a click or the arrow keys choose a place, which `taken` gets. */
export function enlarged(canvas, map, taken) {
  const { width, height } = canvas, place = { y: Math.floor(height / 2), x: Math.floor(width / 2) };
  const mark = h("i", { class: "mark-place" });
  Object.assign(mark.style, { width: `${100 / width}%`, height: `${100 / height}%` });

  function put(y, x) {
    Object.assign(place, { y: clamped(y, height - 1), x: clamped(x, width - 1) });
    mark.style.left = `${(100 * place.x) / width}%`;
    mark.style.top = `${(100 * place.y) / height}%`;
  }

  put(place.y, place.x);
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect(), at = (value, length, count) => Math.floor((value / length) * count);
    put(at(event.clientY - box.top, box.height, height), at(event.clientX - box.left, box.width, width));
    taken(place);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = arrow(event);
    if (!move) return;
    put(place.y + move[0], place.x + move[1]);
    taken(place);
  });
  const facts = t("mapFacts", map.channel, ...[map.mean, map.least, map.most].map((value) => value.toPrecision(3)));
  return { place, parts: [h("div", { class: "enlarged" }, canvas, mark), h("p", { class: "small muted" }, facts)] };
}

/** Show in `place` how one output of a convolution is computed: windows times weights, their sum, and what follows. */
export function taken(place, what) {
  into(place, ask("/api/unit", what, place).then((found) => painted(found, what)));
}

const number = (value) => (value === null ? "–" : Math.abs(value) < 0.005 ? "0" : value.toFixed(2));

/** A square of numbers, coloured by their size: blue above 0, red below. */
function square(rows, label) {
  const most = Math.max(1e-9, ...rows.flat().map(Math.abs));
  const cell = (value, turn) => {
    const box = h("td", { class: value >= 0 ? "plus" : "minus" }, rows.length <= 5 ? number(value) : "");
    box.style.setProperty("--share", `${Math.round((70 * Math.abs(value)) / most)}%`);
    box.style.setProperty("--turn", turn);
    return box;
  };
  const lines = rows.map((row, y) => h("tr", {}, row.map((value, x) => cell(value, y * row.length + x))));
  return h("table", { class: "square", "aria-label": label }, h("tbody", {}, lines));
}

function painted({ inputs, num_inputs, shown, rest, bias, output, after }, { layer, channel, y, x }) {
  const others = num_inputs - inputs.length;
  const line = (input) => h("div", { class: "product" },
    h("small", { class: "muted" }, t("inputChannel", input.channel)),
    square(input.window, t("window")), h("span", {}, "×"), square(input.weights, t("weights")),
    h("span", {}, "="), h("strong", {}, number(input.sum)));
  const step = (name, value) => fact(mono(name), number(value));
  return [
    h("p", { class: "small muted" }, t("apartTold", layer, channel, y + 1, x + 1)), ...inputs.map(line),
    h("dl", { class: "facts above" },
      step(t("theseInputs"), shown), others ? step(t("otherInputs", others), rest) : "",
      step(t("bias"), bias), step(layer, output), after.map((next) => step(next.layer, next.value)))];
}

/** All outputs of a layer as a picture, the largest ones as bars; `choose` gets the index of a unit. */
export function values(found, layer, choose) {
  const most = Math.max(1e-9, ...found.largest.map((each) => Math.abs(each.value)));
  const row = ({ unit, label, value }) => barRow(
    button(label || `${layer}:${unit}`, () => choose(unit), { class: "quiet" }),
    Math.abs(value) / most, value < 0 ? "bad" : "macs", value.toPrecision(3));
  const words = t("allValues", layer);
  return [picture(found.picture, words, words, "all-values"), h("div", { class: "bars" }, found.largest.map(row))];
}
