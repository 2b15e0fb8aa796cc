// The view "Classify": an image in, the classes out, at once.

import { ask, h, meter, share } from "./dom.js";
import { modelList, picker } from "./picker.js";
import { readAddress, writeAddress } from "./state.js";
import { t } from "./words.js";

export function open(main) {
  const left = h("section", { class: "panel stack" }), right = h("section", { class: "panel", "aria-live": "polite" });
  main.append(h("h1", {}, t("classifyTitle")), h("p", { class: "lead" }, t("classifyLead")), h("div", { class: "split half" }, left, right));
  let run = null;
  const images = picker(() => run, classify);
  right.append(h("p", { class: "muted" }, t("noImage")));

  modelList(readAddress().values.model, (name) => { run = name; writeAddress({ values: { model: name } }); again(); }).then(({ name, element }) => {
    run = name;
    left.append(element, ...(name ? [images.element] : []));
    again();
  }, (error) => left.append(h("p", { class: "error" }, error.message)));

  const again = () => run && images.current() && classify(images.current());

  async function classify({ image }) {
    try {
      const found = await ask("/api/classify", { run, image });
      right.replaceChildren(h("h2", {}, `${found.top[0].label}, ${share(found.top[0].probability)}`),
        h("div", { class: "bars" }, found.top.map((each) => h("div", { class: "bar-row" }, h("span", {}, each.label), meter([[each.probability, "macs"]], share(each.probability)), h("span", {}, share(each.probability))))),
        h("figure", { class: "above" }, h("img", { src: found.seen, class: "pixels seen", alt: t("seenByNetwork") }), h("figcaption", {}, t("seenByNetwork"))));
    } catch (error) {
      right.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    }
  }
  return () => images.close();
}
