// The columns of the lists of runs.

import { h, mono, share, whole } from "./dom.js";
import { readAddress } from "./state.js";
import { t } from "./words.js";

export const MOST = 6; // runs that can be followed or compared at once
/** The names in a value of the address, each once. */
export const chosenRuns = (value) => [...new Set((readAddress().values[value] ?? "").split(","))].filter(Boolean);
const COLOURS = { training: "macs", failed: "bad", damaged: "bad", finished: "good" };
const badge = ({ state }) => h("span", { class: `badge ${COLOURS[state] ?? ""}` }, t(`state ${state}`));
const accuracy = ({ last, held_out: heldOut }) => last && [
  share(last.test_accuracy), h("span", { class: "muted" }, ` ${t(heldOut)}`)];
const network = ({ recipe }) => recipe?.architecture ?? "";

/** Each column: its name, the value to sort by, and what it shows, if that differs. */
export const COLUMNS = [
  ["run", ({ name }) => name],
  ["state", ({ state }) => t(`state ${state}`), badge],
  ["column network", network, (run) => mono(network(run))],
  ["column data", ({ recipe }) => recipe?.data.split("/").at(-1) ?? ""],
  ["epochs", ({ last }) => last?.epoch ?? 0, ({ last, recipe }) => last && `${last.epoch} / ${recipe.epochs}`],
  ["column accuracy", ({ last }) => last?.test_accuracy ?? 0, accuracy],
  ["speed", (run) => run.examples_per_second ?? 0, (run) => run.last && whole(run.examples_per_second)]];

/** A row of the list; `names` are chosen so far, and `choose` gets the names chosen after a change. */
export function runRow(run, names, choose) {
  const { name } = run, others = names.filter((each) => each !== name);
  const tick = h("input", {
    type: "checkbox", "data-key": name, checked: names.includes(name),
    onchange: () => choose(tick.checked ? [name, ...others].slice(0, MOST) : others),
  });
  return [h("label", { class: "check mono" }, tick, name), ...COLUMNS.slice(1).map(([, of, shown = of]) => shown(run))];
}
