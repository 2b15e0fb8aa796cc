// The view "Compare": runs in a table, sorted and filtered; the chosen ones measured on the same images.

import {
  ask, button, coloured, counted, failure, h, mono, panel, picture, repaint, share, short, table, whole,
} from "./dom.js";
import { chosenRuns, COLUMNS, runRow } from "./runs.js";
import { writeAddress } from "./state.js";
import { fieldWords, translated } from "./terms.js";
import { t } from "./words.js";

export function open(main) {
  const list = h("div"), result = h("div", { class: "stack", "aria-live": "polite" });
  const view = { runs: [], by: 0, down: false, filter: "" };
  const typed = () => { view.filter = filter.value.toLowerCase(); paint(); };
  const words = t("filterRuns");
  const filter = h("input", { type: "search", "aria-label": words, placeholder: words, oninput: typed });
  const compare = () => counted(result, ask("/api/compare", { runs: chosen() }), painted);
  const start = button("", compare, { class: "primary" });
  main.append(h("div", { class: "stack" }, h("section", { class: "panel stack" },
    h("div", { class: "spread" }, h("div", {}, filter), start), list), result));
  const chosen = () => chosenRuns("compare").filter((name) => view.runs.some((run) => run.name === name));

  const listed = ({ runs }) => { view.runs = runs.filter((run) => run.has_weights); paint(); };
  ask("/api/runs").then(listed, (error) => list.replaceChildren(failure(error.message)));
  const choose = (names) => { writeAddress({ values: { compare: names.join(",") } }); paint(); };
  const sortBy = (by) => { Object.assign(view, { by, down: view.by === by ? !view.down : by > 3 }); paint(); };

  function paint() {
    const names = chosen(), [, of] = COLUMNS[view.by];
    const rows = view.runs
      .filter((run) => COLUMNS.some(([, each]) => String(each(run)).toLowerCase().includes(view.filter)))
      .toSorted((a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0) * (view.down ? -1 : 1));
    const header = COLUMNS.map(([name], index) => button(
      t(name) + (view.by === index ? (view.down ? " ↓" : " ↑") : ""), () => sortBy(index),
      { class: "quiet", "aria-label": t("sortBy", t(name)) }));
    repaint(list, view.runs.length
      ? table(header, rows.map((run) => runRow(run, names, choose)), { label: t("runs") })
      : h("p", { class: "muted" }, t("noModels")));
    start.textContent = t("compareChosen", names.length);
    start.disabled = names.length < 2;
  }
}

function painted({ models, pairs, data, hardware, scatter, differences, disagreements }) {
  const measured = (model) => [
    mono(model.model), mono(model.architecture), short(model.parameters), short(model.macs), share(model.accuracy),
    model.interval.map(share).join(" – "), whole(model.infer_samples_per_sec), model.is_on_front ? "★" : ""];
  const header = [t("run"), t("column network"), coloured("parameters"), coloured("macs"), t("column accuracy"), "95%",
    t("speed"), t("front")];
  const fields = [t("field"), ...models.filter((each) => each.recipe).map((each) => each.model)];
  const different = differences.map(([name, ...values]) => [fieldWords(name)[0], ...values]);
  const names = models.map((each) => each.model), nothing = (key) => h("p", { class: "muted" }, t(key));
  return [
    panel(t("sameMeasure"), h("p", { class: "small muted" }, `${translated(data)} · ${translated(hardware)}`),
      table(header, models.map(measured), { label: t("sameMeasure") }),
      h("ul", {}, pairs.map((pair) => h("li", {}, translated(pair.sentence))))),
    h("section", { class: "panel two" },
      h("figure", {}, h("h3", {}, t("scatterTitle")),
        h("img", { src: scatter, class: "chart", alt: t("scatterTitle") }), h("figcaption", {}, t("scatterHelp"))),
      h("div", {}, h("h3", {}, t("differences")), different.length
        ? table(fields, different, { label: t("differences") }) : nothing("noDifferences"))),
    panel(t("disagreements"), disagreements.length
      ? h("div", { class: "gallery" }, disagreements.map((each) => disagreement(each, names)))
      : nothing("noDisagreements"))];
}

function disagreement({ picture: src, label, taken_for: taken }, names) {
  const colour = (each) => (each === label ? "good" : "bad");
  return picture(src, label, [
    label, taken.map((each, index) => h("div", { class: colour(each) }, `${names[index]}: ${each}`))]);
}
