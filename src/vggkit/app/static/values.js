// The outputs of a fully connected layer: all of them as a picture, the largest ones as bars.

import { h, meter } from "./dom.js";
import { t } from "./words.js";

/** `choose` is told the number of a unit. */
export function values(found, layer, choose) {
  const most = Math.max(1e-9, ...found.largest.map((each) => Math.abs(each.value)));
  const rows = found.largest.map(({ unit, label, value }) => h("div", { class: "bar-row" },
    h("button", { type: "button", class: "quiet", onclick: () => choose(unit) }, label || `${layer}:${unit}`),
    meter([[Math.abs(value) / most, value < 0 ? "bad" : "macs"]], String(value)), h("span", {}, value.toPrecision(3))));
  return [h("figure", {}, h("img", { src: found.picture, class: "pixels all-values", alt: t("allValues", layer) }), h("figcaption", {}, t("allValues", layer))),
    h("div", { class: "bars" }, rows)];
}
