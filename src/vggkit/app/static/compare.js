// The view "Compare": runs in a table, sorted and filtered; the chosen ones measured on the same images.

import { ask, counted, h, repaint, share, short, table, whole } from "./dom.js";
import { scatter } from "./scatter.js";
import { readAddress, writeAddress } from "./state.js";
import { fieldWords, translated } from "./terms.js";
import { t } from "./words.js";

const COLUMNS = [
  ["run", (run) => run.name], ["column network", (run) => run.recipe?.architecture ?? ""], ["column data", (run) => run.recipe?.data.split("/").at(-1) ?? ""],
  ["state", (run) => t(`state ${run.state}`)], ["epochs", (run) => run.last?.epoch ?? 0], ["testAccuracy", (run) => run.last?.test_accuracy ?? 0], ["speed", (run) => run.examples_per_second ?? 0]];
const MOST = 6;

export function open(main) {
  const list = h("div"), result = h("div", { class: "stack", "aria-live": "polite" });
  const view = { runs: [], by: 0, down: false, filter: "", isMeasuring: false };
  const filter = h("input", { type: "search", "aria-label": t("filterRuns"), placeholder: t("filterRuns"), oninput: (event) => { view.filter = event.target.value.toLowerCase(); paint(); } });
  const button = h("button", { type: "button", class: "primary", onclick: compare });
  main.append(h("h1", {}, t("compareTitle")), h("p", { class: "lead" }, t("compareLead")),
    h("div", { class: "stack" }, h("section", { class: "panel stack" }, h("div", { class: "spread" }, h("div", { class: "filter" }, filter), button), list), result));
  const chosen = () => (readAddress().values.compare ?? "").split(",").filter((name) => view.runs.some((run) => run.name === name));

  ask("/api/runs").then(({ runs }) => { view.runs = runs.filter((run) => run.has_weights); paint(); }, (error) => list.replaceChildren(h("p", { class: "error" }, error.message)));

  function paint() {
    const names = chosen(), [, of] = COLUMNS[view.by];
    const rows = view.runs.filter((run) => COLUMNS.some(([, each]) => String(each(run)).toLowerCase().includes(view.filter)))
      .toSorted((a, b) => (of(a) < of(b) ? -1 : of(a) > of(b) ? 1 : 0) * (view.down ? -1 : 1));
    const header = COLUMNS.map(([name], index) => h("button", {
      type: "button", class: "quiet", "aria-label": t("sortBy", t(name)),
      onclick: () => { view.down = view.by === index ? !view.down : index > 3; view.by = index; paint(); },
    }, t(name), view.by === index ? (view.down ? " ↓" : " ↑") : ""));
    const tick = (run) => h("label", { class: "check mono" }, h("input", {
      type: "checkbox", "data-key": run.name, checked: names.includes(run.name),
      onchange: (event) => { writeAddress({ values: { compare: (event.target.checked ? [...names, run.name].slice(-MOST) : names.filter((name) => name !== run.name)).join(",") } }); paint(); },
    }), run.name);
    repaint(list, view.runs.length ? table(header, rows.map((run) => [tick(run), h("span", { class: "mono" }, COLUMNS[1][1](run)), COLUMNS[2][1](run), COLUMNS[3][1](run), run.last ? `${run.last.epoch} / ${run.recipe.epochs}` : "", run.last ? share(run.last.test_accuracy) : "", run.last ? whole(run.examples_per_second) : ""]), { label: t("runs") })
      : h("p", { class: "muted" }, t("noModels")));
    button.textContent = t("compareChosen", names.length);
    button.disabled = names.length < 2;
  }

  async function compare() {
    if (view.isMeasuring) return;
    view.isMeasuring = true;
    await counted(result, (seconds) => t("measuringFor", seconds), () => ask("/api/compare", { runs: chosen() }), painted);
    view.isMeasuring = false;
  }
}

function painted(found) {
  const name = (model) => model.model.split("/").at(-1);
  const rows = found.models.map((model) => [
    h("span", { class: "mono" }, name(model)), h("span", { class: "mono" }, model.architecture), short(model.parameters), short(model.macs), share(model.accuracy),
    model.interval.map(share).join(" – "), whole(model.infer_samples_per_sec), model.is_on_front ? "★" : ""]);
  const unpathed = (text) => found.models.reduce((all, model) => all.replaceAll(model.model, name(model)), text);
  return [
    h("section", { class: "panel" }, h("h2", {}, t("sameMeasure")), h("p", { class: "small muted" }, `${translated(found.data)} · ${translated(found.hardware)}`),
      table([t("run"), t("column network"), h("span", { class: "key parameters" }, t("parameters")), h("span", { class: "key macs" }, t("macs")), t("column accuracy"), "95%", t("speed"), t("front")], rows, { label: t("sameMeasure") }),
      h("ul", {}, found.pairs.map((pair) => h("li", {}, translated(unpathed(pair.sentence)))))),
    h("section", { class: "panel two" }, scatter(found.models.map((model) => ({ name: name(model), x: model.infer_samples_per_sec, y: model.accuracy, size: model.parameters, isOnFront: model.is_on_front }))),
      h("div", {}, h("h3", {}, t("differences")), found.differences.length
        ? table([t("field"), ...found.models.filter((model) => model.recipe).map(name)], found.differences.map(([name, ...rest]) => [fieldWords(name)[0], ...rest]), { label: t("differences") }) : h("p", { class: "muted" }, t("noDifferences")))),
    h("section", { class: "panel" }, h("h2", {}, t("disagreements")), found.disagreements.length
      ? h("div", { class: "gallery" }, found.disagreements.map((each) => h("figure", {}, h("img", { src: each.picture, class: "pixels", alt: each.label }), h("figcaption", {}, each.label,
        each.taken_for.map((taken, index) => h("div", { class: taken === each.label ? "good" : "bad" }, `${name(found.models[index])}: ${taken}`))))))
      : h("p", { class: "muted" }, t("noDisagreements")))];
}
