// The same test images as the network learns them, the weights of its first layer, and what it takes for what.

import { ask, counted, h, meter, repaint, share } from "./dom.js";
import { translated } from "./terms.js";
import { t } from "./words.js";

const EVERY = 10_000; // milliseconds, which is how often a run saves what there is to look at

export function looks(place) {
  const state = { run: null, timer: null, at: 0, step: null };
  const seen = h("section", { class: "panel", hidden: true }), confused = h("section", { class: "panel", hidden: true });
  place.append(seen, confused);

  function show(run) {
    Object.assign(state, { run: run ?? null, step: null, at: 0, shown: null });
    seen.hidden = confused.hidden = true;
  }

  /** The run has told of itself: look again if it has moved, but not more often than it saves. */
  function follow(run) {
    clearTimeout(state.timer);
    if (run && (run.has_weights || run.confusion)) confuse(run);
    if (!run?.has_weights || run.step === state.step) return;
    const wait = EVERY - (Date.now() - state.at);
    if (wait > 0 && run.state === "training") {
      state.timer = setTimeout(() => follow(run), wait);
      return;
    }
    Object.assign(state, { step: run.step, at: Date.now() });
    const { run: name } = state;
    ask("/api/look", { run: name }).then((answer) => { if (state.run === name) paint(answer); }, () => { state.step = null; });
  }

  function paint({ images, filters }) {
    seen.hidden = false;
    const image = (each) => {
      const right = each.top[0].label === each.label;
      return h("figure", {}, h("img", { src: each.picture, class: "pixels", alt: each.label }),
        h("figcaption", {}, each.label, meter([[each.top[0].probability, right ? "good" : "bad"]], share(each.top[0].probability)),
          h("span", { class: right ? "good" : "bad" }, `${right ? "✓" : each.top[0].label} ${share(each.top[0].probability)}`)));
    };
    seen.replaceChildren(h("h2", {}, t("sameImages")), h("div", { class: "gallery" }, images.map(image)),
      h("h2", { class: "above" }, t("firstWeights")), h("div", { class: "tiles" }, filters.map((src, index) => h("img", { src, class: "pixels", alt: t("filter", index + 1) }))));
  }

  /** What the run itself has counted after its last epoch, and a button that measures. */
  function confuse({ confusion, has_weights: hasWeights }) {
    const shown = `${confusion?.epoch} ${hasWeights}`;
    if (shown === state.shown) return;
    state.shown = shown;
    confused.hidden = false;
    repaint(confused, h("h2", {}, t("confusion")), ...(confusion ? matrix(confusion, t("confusionAfter", confusion.epoch)) : []),
      hasWeights ? h("button", { type: "button", class: "above", onclick: measure }, t("measureIt")) : "");
  }

  function measure() {
    const { run } = state, place = h("div", { class: "stack" });
    repaint(confused, h("h2", {}, t("confusion")), place);
    counted(place, (seconds) => t("measuringFor", seconds), () => ask("/api/confusion", { run }), (found) =>
      matrix(found, t("accuracyIs", share(found.accuracy), share(found.low), share(found.high), found.images.toLocaleString("en-US"), translated(found.measured_on))));
  }
  return { show, follow, close: () => { clearTimeout(state.timer); state.run = null; } };
}

/** A row is a true class, a column what it was taken for; the darker, the larger its part of the class. */
function matrix({ classes, counts }, words) {
  const most = counts.map((row) => Math.max(1, row.reduce((sum, count) => sum + count, 0)));
  const cell = (count, row, column) => {
    const box = h("td", { class: row === column ? "right" : count ? "wrong" : "" }, count || "·");
    box.style.setProperty("--share", `${Math.round(100 * Math.min(1, (row === column ? 0.6 : 3) * (count / most[row])))}%`);
    return box;
  };
  const head = h("tr", {}, h("th", { scope: "col" }, t("trueClass")), classes.map((name) => h("th", { scope: "col", title: name }, name.slice(0, 9))));
  return [
    h("p", {}, words, " ", t("matrixHelp")),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("confusion") }, h("table", { class: "matrix" }, h("thead", {}, head),
      h("tbody", {}, counts.map((row, index) => h("tr", {}, h("th", { scope: "row" }, classes[index]), row.map((count, column) => cell(count, index, column)))))))];
}
