// The view "Classify": an image in, the classes out, at once.

import { ask, barRow, h, into, picture, share } from "./dom.js";
import { modelList, picker } from "./picker.js";
import { t } from "./words.js";

export function open(main) {
  const left = h("section", { class: "panel stack" });
  const right = h("section", { class: "panel", "aria-live": "polite" }, h("p", { class: "muted" }, t("noImage")));
  main.append(h("div", { class: "split half" }, left, right));
  const images = picker(({ image }, run) => into(right, ask("/api/classify", { run, image }).then(painted)));
  modelList(left, images);
  return images.close;
}

function painted({ top, seen }) {
  const row = ({ label, probability }) => barRow(label, probability, "macs", share(probability));
  return [
    h("h2", {}, `${top[0].label}, ${share(top[0].probability)}`), h("div", { class: "bars" }, top.map(row)),
    h("div", { class: "above" }, picture(seen, t("seenByNetwork"), t("seenByNetwork"), "seen"))];
}
