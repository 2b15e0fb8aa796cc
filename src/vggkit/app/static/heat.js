// What in the image speaks for its class: maps by several methods, and whether each tells something about the network.

import { ask, h, share } from "./dom.js";
import { t } from "./words.js";

const METHODS = ["grad-cam", "layer-cam", "saliency", "smoothgrad", "integrated-gradients", "occlusion", "lrp", "guided-backprop"];
const MOST = 4;
const chosen = new Set(["grad-cam", "lrp"]);

/** A panel; `asked` gives the run and the image. */
export function heatMaps(asked) {
  const result = h("div", { "aria-live": "polite" }), withCheck = h("input", { type: "checkbox" });
  const chip = (method) => h("button", {
    type: "button", "aria-pressed": String(chosen.has(method)),
    onclick: (event) => {
      if (chosen.has(method)) chosen.delete(method);
      else if (chosen.size < MOST) chosen.add(method);
      event.target.setAttribute("aria-pressed", String(chosen.has(method)));
    },
  }, method);

  async function run() {
    const begin = Date.now(), told = h("p", { role: "status" });
    const count = () => { told.textContent = t("measuringFor", Math.round((Date.now() - begin) / 1000)); };
    count();
    const timer = setInterval(count, 1000);
    result.replaceChildren(told);
    try {
      const found = await ask("/api/heat", { ...asked(), methods: METHODS.filter((method) => chosen.has(method)), check: withCheck.checked });
      result.replaceChildren(h("p", {}, t("heatFor", found.label, share(found.probability))),
        h("img", { src: found.picture, class: "heat", alt: t("heatFor", found.label, share(found.probability)) }),
        h("ul", {}, found.verdicts.map((verdict, index) => h("li", { class: verdict.startsWith("yes") ? "good" : "warn" }, `${found.maps[index].method}: ${verdict}`))));
    } catch (error) {
      result.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    } finally {
      clearInterval(timer);
    }
  }
  const element = h("section", { class: "panel stack" }, h("h2", {}, t("heatTitle")), h("p", { class: "small muted" }, t("heatHelp", MOST)), h("div", { class: "chips" }, METHODS.map(chip)),
    h("div", { class: "row" }, h("label", { class: "check" }, withCheck, t("heatCheck")), h("button", { type: "button", class: "primary", onclick: run }, t("heatRun"))), result);
  return { element, clear: () => result.replaceChildren() };
}
