// What in the image speaks for its class: maps by several methods, and whether each tells something about the network.

import { ask, counted, h, share } from "./dom.js";
import { translated } from "./terms.js";
import { t } from "./words.js";

const MOST = 4;
const chosen = new Set(["grad-cam", "lrp"]);

/** A panel; `asked` gives the run and the image. */
export function heatMaps(asked) {
  const result = h("div", { "aria-live": "polite" }), withCheck = h("input", { type: "checkbox" }), chips = h("div", { class: "chips" });
  let offered = [];
  const chip = (method) => h("button", {
    type: "button", "aria-pressed": String(chosen.has(method)),
    onclick: (event) => {
      if (chosen.has(method)) chosen.delete(method);
      else if (chosen.size < MOST) chosen.add(method);
      event.target.setAttribute("aria-pressed", String(chosen.has(method)));
    },
  }, method);

  function run() {
    counted(result, (seconds) => t("measuringFor", seconds), () => ask("/api/heat", { ...asked(), methods: offered.filter((method) => chosen.has(method)), check: withCheck.checked }), (found) => [
      h("p", {}, t("heatFor", found.label, share(found.probability))),
      h("img", { src: found.picture, class: "heat", alt: t("heatFor", found.label, share(found.probability)) }),
      h("ul", {}, found.verdicts.map((verdict, index) => h("li", { class: verdict.startsWith("yes") ? "good" : "warn" }, `${found.maps[index].method}: ${translated(verdict)}`)))]);
  }
  const element = h("section", { class: "panel stack" }, h("h2", {}, t("heatTitle")), h("p", { class: "small muted" }, t("heatHelp", MOST)), chips,
    h("div", { class: "row" }, h("label", { class: "check" }, withCheck, t("heatCheck")), h("button", { type: "button", class: "primary", onclick: run }, t("heatRun"))), result);
  const clear = () => result.replaceChildren();
  return { element, clear, offer: (methods) => { offered = methods; chips.replaceChildren(...methods.map(chip)); clear(); } };
}
