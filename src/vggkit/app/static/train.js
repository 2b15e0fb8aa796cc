// The view "Train": a recipe, the runs, and the progress of the chosen ones.

import { ask, blame, button, failure, field, h, pause, repaint, table } from "./dom.js";
import { recipeForm } from "./form.js";
import { cards, charts } from "./live.js";
import { looks } from "./looks.js";
import { chosenRuns, COLUMNS, MOST, runRow } from "./runs.js";
import { designOf, readAddress, writeAddress } from "./state.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

const EVERY = 5_000; // milliseconds: how soon a run that is not followed is seen to begin, go on and end
let kept = null;

export function open(main) {
  const form = h("section", { class: "panel stack late recipe" }), list = h("section", { class: "panel" });
  const [carded, charted, seen] = [1, 2, 3].map(() => h("div", { class: "stack", "aria-live": "off" }));
  const view = { runs: [], datasets: [], source: null, followed: {}, asked: {}, isNew: false };
  main.append(h("div", { class: "split" }, form, h("div", { class: "stack" }, list, carded, charted, seen)));
  const chosen = () => chosenRuns("run").slice(0, MOST);
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
    const check = async () => {
      await pause(150, "check");
      const found = await ask("/api/check", { recipe }, "check").catch(({ message }) => ({ error: message }));
      error.textContent = complaint(found.error ?? "");
      blame(form, found.error);
    };
    const [groups, helps] = recipeForm(fields, recipe, recipes[base], choices, check);
    const start = button(t("startRun"), () => begin(start, error), { class: "primary" });
    repaint(form,
      h("div", { class: "stack" },
        field(t("recipe"), base, { choices: Object.keys(recipes), change: take, name: "recipe" }),
        button(t("useDesign"), useDesign), h("div", {}, groups)),
      h("div", { class: "foot" }, h("div", { class: "small muted" }, helps), error, start));
    check();
  }

  function useDesign() {
    const { text, options } = designOf(readAddress().values);
    const { image_size, head, hidden = [], dropout, pooled_size = kept.recipe.pooled_size } = options;
    kept.recipe = { ...kept.recipe, architecture: text, image_size, head, hidden, dropout, pooled_size };
    paintForm();
  }

  /** Start a run; it is brought into view as soon as the server follows it. */
  async function begin(start, error) {
    start.textContent = t("starting");
    view.isNew = await act("start", { recipe: kept.recipe }, error);
    start.textContent = t("startRun");
  }

  /** Whether the server accepted the request, after which its run is the first of the chosen ones. */
  async function act(verb, body, place) {
    place.textContent = "";
    pause(500).then(again);
    try {
      const { name } = await ask(`/api/${verb}`, body);
      if (chosen()[0] !== name) choose([...new Set([name, ...chosen()])].slice(0, MOST));
      return true;
    } catch (error) {
      place.textContent = error.message;
      return false;
    }
  }

  async function refresh() {
    const found = await ask("/api/runs", undefined, "runs"), text = JSON.stringify(found);
    if (text !== view.text) paintList(Object.assign(view, found, { text })); // a click on a list that stays is not lost
  }
  const again = () => refresh().catch(() => {});
  const choose = (names) => { writeAddress({ values: { run: names.join(",") } }); paintList(); listen(); };

  function paintList() {
    const runs = view.runs.filter((run) => run.state !== "file");
    const row = (run) => [...runRow(run, chosen(), choose), action(run)];
    repaint(list, h("h2", {}, t("runs")), runs.length
      ? table([...COLUMNS.map(([name]) => t(name)), ""], runs.map(row), { label: t("runs") })
      : h("p", { class: "muted" }, t("noRuns")), problem);
  }

  /** Not while a button is pressed: it would lose the click. */
  const paintCards = () => carded.querySelector(":active")
    || repaint(carded, ...cards(chosen(), view.followed, action));

  /** The button that stops or resumes a run; once pressed, it says what it waits for until the state changes. */
  function action({ name, state }) {
    const verb = { training: "stop", stopped: "resume" }[state], isAsked = view.asked[name] === state;
    async function pressed() {
      if (isAsked) return;
      view.asked[name] = state;
      paintList();
      paintCards();
      if (await act(verb, { run: name }, problem)) return;
      view.asked[name] = null;
      paintList();
    }
    const words = isAsked ? `${verb} asked` : verb;
    return verb && button(t(words), pressed, { "data-key": `act ${name}`, "aria-disabled": isAsked && "true" });
  }

  function listen() {
    view.source?.close();
    paintCards();
    charted.replaceChildren();
    const names = chosen();
    looking.show(names[0]);
    if (!names.length) return;
    view.source = new EventSource(`/api/events?runs=${encodeURIComponent(names.join(","))}`);
    view.source.onmessage = ({ data }) => {
      const runs = JSON.parse(data);
      const states = (all) => JSON.stringify(Object.values(all).map((run) => [run.state, run.epochs.length]));
      const hasChanged = states(view.followed) !== states(runs);
      view.followed = runs;
      paintCards();
      const isRead = charted.querySelector("svg.chart:hover, svg.chart:focus, details[open]"); // then the charts stay
      if (!isRead) repaint(charted, ...charts(names, runs));
      if (view.isNew && runs[names[0]]) {
        view.isNew = false;
        carded.scrollIntoView();
        carded.querySelector("h2").focus({ preventScroll: true });
      }
      looking.follow(runs[names[0]]);
      if (hasChanged) again();
    };
  }

  fill().then(listen, (error) => form.replaceChildren(failure(error.message)));
  const timer = setInterval(() => document.hidden || again(paintCards()), EVERY);
  return () => { view.source?.close(); clearInterval(timer); };
}
