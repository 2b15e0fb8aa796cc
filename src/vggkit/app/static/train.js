// The view "Train": a recipe, its runs, and how the chosen ones go on.

import { ask, h, repaint, share, table, whole } from "./dom.js";
import { recipeForm } from "./form.js";
import { follow, painted } from "./live.js";
import { looks } from "./looks.js";
import { designOf, readAddress, writeAddress } from "./state.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

let kept = null;

export function open(main) {
  const form = h("section", { class: "panel stack late" }), list = h("section", { class: "panel" }), live = h("div", { class: "stack", "aria-live": "off" }), seen = h("div", { class: "stack" });
  const view = { runs: [], datasets: [], source: null, followed: {}, timer: null };
  main.append(h("h1", {}, t("trainTitle")), h("p", { class: "lead" }, t("trainLead")),
    h("div", { class: "split" }, h("div", { class: "stack" }, form), h("div", { class: "stack" }, list, live, seen)));
  const chosen = () => (readAddress().values.run ?? "").split(",").filter(Boolean);
  const looking = looks(seen);

  async function fill() {
    view.known ??= await ask("/api/recipes");
    await refresh();
    kept ??= { base: "quick", recipe: structuredClone(view.known.recipes.quick) };
    paintForm();
  }

  function paintForm() {
    const named = view.known.recipes[kept.base];
    const error = h("p", { class: "error", role: "alert" });
    const models = ["", ...view.runs.filter((run) => run.has_weights).map((run) => run.name)];
    const choices = { data: view.datasets, warm_start: models, pretrained: models, continues: models };
    if (!view.datasets.includes(kept.recipe.data)) [kept.recipe.data] = view.datasets;
    const check = () => {
      clearTimeout(view.checking);
      view.checking = setTimeout(() => ask("/api/check", { recipe: kept.recipe }).then((found) => { error.textContent = complaint(found.error ?? ""); }, (found) => { error.textContent = found.message; }), 150);
    };
    repaint(form,
      h("label", {}, t("recipe"), h("select", { name: "recipe", onchange: (event) => { kept = { base: event.target.value, recipe: structuredClone(view.known.recipes[event.target.value]) }; paintForm(); } },
        Object.keys(view.known.recipes).map((name) => h("option", { value: name, selected: name === kept.base }, name)))),
      h("button", { type: "button", onclick: useDesign }, t("useDesign")),
      h("div", {}, recipeForm(view.known.fields, kept.recipe, named, choices, check)), error,
      h("button", { type: "button", class: "primary", onclick: () => act("/api/start", { recipe: kept.recipe }, error) }, t("startRun")));
    check();
  }

  function useDesign() {
    const { text, options } = designOf(readAddress().values);
    kept.recipe = { ...kept.recipe, architecture: text, image_size: options.image_size, head: options.head, hidden: options.hidden ?? [], dropout: options.dropout, ...(options.pooled_size ? { pooled_size: options.pooled_size } : {}) };
    paintForm();
  }

  async function act(path, body, place) {
    try {
      const { name } = await ask(path, body);
      place?.replaceChildren();
      choose([...new Set([name, ...chosen()])].slice(0, 6));
    } catch (error) {
      if (place) place.textContent = error.message;
    }
    setTimeout(() => refresh().catch(() => {}), 500);
  }

  async function refresh() {
    const answer = await ask("/api/runs");
    view.runs = answer.runs;
    view.datasets = answer.datasets;
    paintList();
  }

  function choose(names) {
    writeAddress({ values: { run: names.join(",") } });
    paintList();
    listen();
  }

  function paintList() {
    const names = chosen(), problem = h("p", { class: "error", role: "alert" });
    const rows = view.runs.filter((run) => run.state !== "file").map((run) => [
      h("label", { class: "check mono" }, h("input", { type: "checkbox", "data-key": run.name, checked: names.includes(run.name), onchange: (event) => choose(event.target.checked ? [run.name, ...names].slice(0, 6) : names.filter((name) => name !== run.name)) }), run.name),
      h("span", { class: `badge ${{ training: "macs", failed: "bad", damaged: "bad", finished: "good" }[run.state] ?? ""}` }, t(`state ${run.state}`)),
      h("span", { class: "mono" }, run.recipe?.architecture ?? ""), run.recipe?.data.split("/").at(-1) ?? "",
      run.last ? `${run.last.epoch} / ${run.recipe.epochs}` : "", run.last ? share(run.last.test_accuracy) : "", run.last ? whole(run.examples_per_second) : "",
      run.state === "training" ? h("button", { type: "button", "data-key": `act ${run.name}`, onclick: () => act("/api/stop", { run: run.name }, problem) }, t("stop"))
        : run.state === "stopped" ? h("button", { type: "button", "data-key": `act ${run.name}`, onclick: () => act("/api/resume", { run: run.name }, problem) }, t("resume")) : ""]);
    repaint(list, h("h2", {}, t("runs")), rows.length
      ? table([t("run"), t("state"), t("column network"), t("column data"), t("epochs"), t("testAccuracy"), t("speed"), ""], rows, { label: t("runs") })
      : h("p", { class: "muted" }, t("noRuns")), problem);
  }

  function listen() {
    view.source?.close();
    view.source = null;
    live.replaceChildren();
    const names = chosen();
    looking.show(names[0]);
    if (!names.length) return;
    view.source = follow(names, (runs) => {
      const before = JSON.stringify(Object.values(view.followed).map((run) => run.state));
      view.followed = runs;
      const parts = painted(names, runs);
      if (live.querySelector("svg.chart:hover, svg.chart:focus, details[open]")) [...live.children].slice(0, -1).forEach((old, index) => old.replaceWith(parts[index]));
      else repaint(live, ...parts);
      looking.follow(runs[names[0]]);
      if (before !== JSON.stringify(Object.values(runs).map((run) => run.state))) refresh().catch(() => {});
    });
  }

  fill().then(listen, (error) => form.replaceChildren(h("p", { class: "error" }, error.message)));
  return () => { view.source?.close(); looking.close(); };
}
