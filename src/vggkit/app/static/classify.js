// The view "Classify": an image in, the classes out, at once.

import { ask, barRow, button, h, into, picture, share } from "./dom.js";
import { modelList, picker } from "./picker.js";
import { t } from "./words.js";

export function open(main) {
  const left = h("section", { class: "panel stack" });
  const nothing = () => [h("p", { class: "muted" }, t("noImage"))];
  const right = h("section", { class: "panel", "aria-live": "polite" }, nothing());
  main.append(h("div", { class: "split half" }, left, right));
  const invert = (image) => images.take(() => ask("/api/invert", { image }, "image"));
  const images = picker(({ image, label: trueClass }, run) => {
    into(right, image ? ask("/api/classify", { run, image }, right).then(painted) : Promise.resolve(nothing()));

    function painted({ top, seen, is_negative: isNegative }) {
      const row = ({ label, probability }) => barRow(label, probability, "macs", share(probability));
      const verdict = top[0].label === trueClass ? "right" : "wrong";
      return [
        h("h2", {}, `${top[0].label}, ${share(top[0].probability)}`),
        trueClass && h("p", { class: verdict === "right" ? "good" : "bad" }, t(`class ${verdict}`, trueClass)),
        isNegative && h("p", {}, t("invertHint"), " ", button(t("invert"), () => invert(image))),
        h("div", { class: "bars" }, top.map(row)),
        h("div", { class: "above" }, picture(seen, t("seenByNetwork"), t("seenByNetwork"), "seen"))];
    }
  });
  modelList(left, images);
  return images.close;
}
