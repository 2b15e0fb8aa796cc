// What a unit looks for: the image that excites it most, and the patches of a data set that do.

import { ask, counted, h } from "./dom.js";
import { t } from "./words.js";

/** A panel; `asked` gives the run and the unit, such as conv4_2:37. */
export function exciting(asked) {
  const result = h("div", { "aria-live": "polite" }), button = h("button", { type: "button", class: "primary", onclick: run });
  const data = h("select", { name: "patches" });
  const picture = (src, caption) => h("figure", {}, h("img", { src, class: "pixels", alt: caption }), h("figcaption", {}, caption));

  function run() {
    counted(result, (seconds) => t("measuringFor", seconds), () => ask("/api/exciting", { ...asked(), data: data.value }), (found) => [
      h("p", {}, t("excitesTold", asked().unit, found.images, t(found.split), found.data)),
      h("div", { class: "gallery" }, picture(found.maximised, t("maximised")), found.patches.map((patch) => picture(patch.picture, patch.value.toPrecision(3))))]);
  }
  const element = h("section", { class: "panel stack" }, h("h2", {}, t("excitesTitle")), h("p", { class: "small muted" }, t("excitesHelp")),
    h("div", { class: "row end" }, h("label", {}, t("data"), data), button), result);
  return {
    element,
    /** Another network, with images of its own or without. */
    offer: (hasData, datasets) => {
      data.replaceChildren(...(hasData ? [h("option", { value: "" }, t("ownImages"))] : []), ...datasets.map((name) => h("option", { value: name }, name)));
      result.replaceChildren();
    },
    show: () => { button.textContent = t("excitesRun", asked().unit); },
  };
}
