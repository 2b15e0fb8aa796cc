// The view "Train": a recipe, the runs, and the progress of the chosen ones.

import { ask, button, failure, field, h, repaint, table } from "./dom.js";
import { recipeForm } from "./form.js";
import { painted } from "./live.js";
import { looks } from "./looks.js";
import { COLUMNS, MOST, runRow } from "./runs.js";
import { designOf, readAddress, writeAddress } from "./state.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

let kept = null;

export function open(main) {
  const form = h("section", { class: "panel stack late" }), list = h("section", { class: "panel" });
  const live = h("div", { class: "stack", "aria-live": "off" }), seen = h("div", { class: "stack" });
  const view = { runs: [], datasets: [], source: null, followed: {} };
  const columns = [[form], [list, live, seen]].map((parts) => h("div", { class: "stack" }, parts));
  main.append(h("div", { class: "split" }, columns));
  const chosen = () => (readAddress().values.run ?? "").split(",").filter(Boolean);
  const looking = looks(seen), problem = failure("");

  async function fill() {
    view.known ??= await ask("/api/recipes");
    await refresh();
    if (kept) paintForm();
    else take("quick");
  }

  function take(base) {
    kept = { base, recipe: structuredClone(view.known.recipes[base]) };
    paintForm();
  }

  function paintForm() {
    const { recipe, base } = kept, { recipes, fields } = view.known, error = failure("");
    const models = ["", ...view.runs.filter((run) => run.has_weights).map((run) => run.name)];
    const choices = { data: view.datasets, warm_start: models, pretrained: models, continues: models };
    if (!view.datasets.includes(recipe.data)) [recipe.data] = view.datasets;
    const check = () => {
      clearTimeout(view.checking);
      view.checking = setTimeout(async () => {
        const found = await ask("/api/check", { recipe }).catch((unanswered) => ({ error: unanswered.message }));
        error.textContent = complaint(found.error ?? "");
      }, 150);
    };
    repaint(form,
      field(t("recipe"), base, { choices: Object.keys(recipes), change: take, name: "recipe" }),
      button(t("useDesign"), useDesign),
      h("div", {}, recipeForm(fields, recipe, recipes[base], choices, check)), error,
      button(t("startRun"), () => act("/api/start", { recipe }, error), { class: "primary" }));
    check();
  }

  function useDesign() {
    const { text, options } = designOf(readAddress().values);
    const { image_size, head, hidden = [], dropout, pooled_size = kept.recipe.pooled_size } = options;
    kept.recipe = { ...kept.recipe, architecture: text, image_size, head, hidden, dropout, pooled_size };
    paintForm();
  }

  async function act(path, body, place) {
    place.textContent = "";
    try {
      const { name } = await ask(path, body);
      choose([...new Set([name, ...chosen()])].slice(0, MOST));
    } catch (error) {
      place.textContent = error.message;
    }
    setTimeout(() => refresh().catch(() => {}), 500);
  }

  const refresh = async () => { Object.assign(view, await ask("/api/runs")); paintList(); };
  const choose = (names) => { writeAddress({ values: { run: names.join(",") } }); paintList(); listen(); };

  function paintList() {
    const runs = view.runs.filter((run) => run.state !== "file");
    const head = [...COLUMNS.map(([name]) => t(name)), ""];
    repaint(list, h("h2", {}, t("runs")), runs.length ? table(head, runs.map(row), { label: t("runs") })
      : h("p", { class: "muted" }, t("noRuns")), problem);
  }

  function row(run) {
    const { name, state } = run, verb = { training: "stop", stopped: "resume" }[state];
    const acted = () => act(`/api/${verb}`, { run: name }, problem);
    return [...runRow(run, chosen(), choose), verb && button(t(verb), acted, { "data-key": `act ${name}` })];
  }

  function listen() {
    view.source?.close();
    view.source = null;
    live.replaceChildren();
    const names = chosen();
    looking.show(names[0]);
    if (!names.length || !form.isConnected) return;
    view.source = new EventSource(`/api/events?runs=${encodeURIComponent(names.join(","))}`);
    view.source.onmessage = ({ data }) => {
      const runs = JSON.parse(data);
      const states = (all) => JSON.stringify(Object.values(all).map((run) => run.state));
      const hasChanged = states(view.followed) !== states(runs), parts = painted(names, runs);
      view.followed = runs;
      const isRead = live.querySelector("svg.chart:hover, svg.chart:focus, details[open]"); // then the charts stay
      if (isRead) [...live.children].slice(0, -1).forEach((old, index) => old.replaceWith(parts[index]));
      else repaint(live, ...parts);
      looking.follow(runs[names[0]]);
      if (hasChanged) refresh().catch(() => {});
    };
  }

  fill().then(listen, (error) => form.replaceChildren(failure(error.message)));
  return () => { view.source?.close(); looking.close(); };
}
