// What a network has learnt so far: the same test images each time, the weights of its first layer, its confusions.

import { ask, button, counted, h, meter, pause, picture, region, repaint, share, whole } from "./dom.js";
import { translated } from "./terms.js";
import { t } from "./words.js";

const EVERY = 10_000; // milliseconds: how often a run saves a checkpoint

export function looks(place) {
  const state = { run: null, at: 0, step: null };
  const [seen, confused] = [1, 2].map(() => h("section", { class: "panel", hidden: true }));
  place.append(seen, confused);

  function show(run) {
    Object.assign(state, { run: run ?? null, step: null, at: 0, shown: null });
    seen.hidden = confused.hidden = true;
  }

  /** Ask again if the run has moved on, but not more often than it saves. */
  async function follow(run) {
    const { run: name } = state;
    if (run && (run.has_weights || run.confusion)) confuse(run);
    if (!run?.has_weights || run.step === state.step) return;
    await pause(run.state === "training" ? EVERY - (Date.now() - state.at) : 0, "looks");
    if (state.run !== name) return;
    Object.assign(state, { step: run.step, at: Date.now() });
    ask("/api/look", { run: name }, "look").then(
      (answer) => state.run === name && paint(answer), () => { state.step = null; });
  }

  function paint({ images, filters }) {
    seen.hidden = false;
    seen.replaceChildren(h("h2", {}, t("sameImages")), h("div", { class: "gallery" }, images.map(judged)),
      h("h2", { class: "above" }, t("firstWeights")), h("div", { class: "tiles" },
        filters.map((src, index) => h("img", { src, class: "pixels", alt: t("filter", index + 1) }))));
  }

  /** The confusion matrix that the run counted after its last epoch, and a button that measures it anew. */
  function confuse({ confusion, has_weights: hasWeights }) {
    const shown = `${confusion?.epoch} ${hasWeights}`;
    if (shown === state.shown) return;
    state.shown = shown;
    confused.hidden = false;
    repaint(confused, h("h2", {}, t("confusion")),
      ...(confusion ? matrix(confusion, t("confusionAfter", confusion.epoch)) : []),
      hasWeights ? button(t("measureIt"), measure, { class: "above" }) : "");
  }

  function measure() {
    const { run } = state, measured = h("div", { class: "stack" });
    repaint(confused, h("h2", {}, t("confusion")), measured);
    return counted(measured, ask("/api/confusion", { run }), (found) => {
      const [accuracy, low, high] = [found.accuracy, found.low, found.high].map(share);
      return matrix(found, t("accuracyIs", accuracy, low, high, whole(found.images), translated(found.measured_on)));
    });
  }

  return { show, follow };
}

/** A test image, with the class that the network takes it for and its probability. */
function judged({ picture: src, label, top: [best] }) {
  const isRight = best.label === label, colour = isRight ? "good" : "bad", sure = share(best.probability);
  return picture(src, label, [label, meter([[best.probability, colour]], sure),
    h("span", { class: colour }, `${isRight ? "✓" : best.label} ${sure}`)]);
}

/** Rows are true classes, columns predicted ones; a cell is the darker, the larger its share of the class. */
function matrix({ classes, counts }, words) {
  const most = counts.map((row) => Math.max(1, row.reduce((sum, count) => sum + count, 0)));
  const cell = (count, row, column) => {
    const isRight = row === column, box = h("td", { class: isRight ? "plus" : count ? "minus" : "" }, count || "·");
    box.style.setProperty("--share", `${Math.round(100 * Math.min(1, (isRight ? 0.6 : 3) * (count / most[row])))}%`);
    return box;
  };
  const row = (cells, index) => h("tr", {}, h("th", { scope: "row" }, classes[index]),
    cells.map((count, column) => cell(count, index, column)));
  const short = (name) => (name.length > 10 ? `${name.slice(0, 9)}…` : name);
  const head = classes.map((name) => h("th", { scope: "col", title: name }, short(name)));
  return [
    h("p", {}, words, " ", t("matrixHelp")),
    region(t("confusion"), h("table", { class: "matrix" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, t("trueClass")), head)), h("tbody", {}, counts.map(row))))];
}
