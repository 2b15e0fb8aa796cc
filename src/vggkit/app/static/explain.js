// The panels of `vgg explain`: which pixels support the class, and what excites a unit.

import { ask, button, counted, h, options, picture, region, share, whole } from "./dom.js";
import { translated } from "./terms.js";
import { t } from "./words.js";

const MOST = 4;
const chosen = new Set(["grad-cam", "lrp"]);

/** Heat maps by several methods, with their checks; `asked` gives the run and the image. */
export function heatMaps(asked) {
  const result = h("div", { "aria-live": "polite" }), chips = h("div", { class: "chips" });
  const withCheck = h("input", { type: "checkbox" });
  let offered = [];
  const chip = (method) => button(method, ({ target }) => {
    if (chosen.has(method)) chosen.delete(method);
    else if (chosen.size < MOST) chosen.add(method);
    target.setAttribute("aria-pressed", String(chosen.has(method)));
    for (const each of chips.children) each.disabled = chosen.size >= MOST && !chosen.has(each.textContent);
  }, { "aria-pressed": String(chosen.has(method)) });

  function run() {
    const methods = offered.filter((method) => chosen.has(method));
    return counted(result, ask("/api/heat", { ...asked(), methods, check: withCheck.checked }), painted);
  }

  function painted({ label, probability, is_mirrored: isMirrored, maps }) {
    const colour = (line) => (line.startsWith("yes") ? "good" : "warn"), words = `${label}, ${share(probability)}`;
    const shown = ({ method, picture: src, verdict }) => [
      h("h3", {}, method), region(method, h("img", { src, class: "heat", alt: `${method}: ${words}` })),
      verdict && h("p", {}, t("heatQuestion"), " ", h("span", { class: colour(verdict) }, translated(verdict)))];
    return [h("p", {}, words, isMirrored ? t("imageAlone") : ""), ...maps.flatMap(shown)];
  }

  const clear = () => result.replaceChildren();
  const element = h("section", { class: "panel stack" },
    h("h2", {}, t("heatTitle")), h("p", { class: "small muted" }, t("heatHelp", MOST)), chips,
    h("div", { class: "row" }, h("label", { class: "check" }, withCheck, t("heatCheck")),
      button(t("heatRun"), run, { class: "primary" })), result);
  const offer = (methods) => { offered = methods; chips.replaceChildren(...methods.map(chip)); clear(); };
  return { element, clear, offer };
}

/** The image and the patches that excite a unit most; `asked` gives the run and the unit, such as conv4_2:37. */
export function exciting(asked) {
  const result = h("div", { "aria-live": "polite" }), data = h("select", { name: "patches" });
  const search = button("", run, { class: "primary" });

  function run() {
    const { unit } = asked(), work = ask("/api/exciting", { ...asked(), data: data.value });
    return counted(result, work, ({ maximised, patches, images, split, data: name }) => [
      h("p", {}, t("excitesTold", unit, whole(images), t(split), name)),
      h("div", { class: "gallery" }, picture(maximised, t("maximised")),
        patches.map((patch) => picture(patch.picture, patch.value.toPrecision(3))))]);
  }
  const element = h("section", { class: "panel stack" },
    h("h2", {}, t("excitesTitle")), h("p", { class: "small muted" }, t("excitesHelp")),
    h("div", { class: "row end" }, h("label", {}, t("data"), data), search), result);
  return {
    element,
    /** Start anew with another network, which has images of its own or not. */
    offer: (hasData, datasets) => {
      data.replaceChildren(...options(hasData ? ["", ...datasets] : datasets, null, t("ownImages")));
      result.replaceChildren();
    },
    show: () => { search.textContent = t("excitesRun", asked().unit); },
  };
}
