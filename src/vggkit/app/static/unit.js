// One output of a convolution taken apart: windows times weights, summed over the inputs, and what comes of the sum.

import { ask, h } from "./dom.js";
import { t } from "./words.js";

let asked = 0;

export async function taken(place, what) {
  const mine = ++asked;
  try {
    const found = await ask("/api/unit", what);
    if (mine === asked) place.replaceChildren(...painted(found, what));
  } catch (error) {
    if (mine === asked) place.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
  }
}

const number = (value) => (value === null ? "–" : Math.abs(value) < 0.005 ? "0" : value.toFixed(2));

/** A square of numbers; the stronger the colour, the larger the number: blue above 0, red below. */
function square(rows, label) {
  const most = Math.max(1e-9, ...rows.flat().map(Math.abs));
  return h("table", { class: "square", "aria-label": label }, h("tbody", {}, rows.map((row, y) => h("tr", {}, row.map((value, x) => {
    const cell = h("td", { class: value >= 0 ? "above-zero" : "below-zero" }, rows.length <= 5 ? number(value) : "");
    cell.style.setProperty("--share", `${Math.round((70 * Math.abs(value)) / most)}%`);
    cell.style.setProperty("--turn", y * row.length + x);
    return cell;
  })))));
}

function painted(found, what) {
  const rest = found.num_inputs - found.inputs.length;
  const lines = found.inputs.map((input) => h("div", { class: "product" },
    h("small", { class: "muted" }, t("inputChannel", input.channel)),
    square(input.window, t("window")), h("span", {}, "×"), square(input.weights, t("weights")), h("span", {}, "="), h("strong", {}, number(input.sum))));
  const step = (name, value) => h("div", {}, h("dt", { class: "mono" }, name), h("dd", {}, number(value)));
  return [
    h("p", { class: "small muted" }, t("apartTold", what.layer, what.channel, what.y + 1, what.x + 1)), ...lines,
    h("dl", { class: "facts above" },
      step(t("theseInputs"), found.shown),
      rest ? step(t("otherInputs", rest), found.rest) : "", step(t("bias"), found.bias), step(what.layer, found.output),
      found.after.map(({ layer, value }) => step(layer, value)))];
}
