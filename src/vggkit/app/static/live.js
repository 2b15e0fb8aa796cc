// The progress and the curves of the chosen runs.

import { chart, COLOURS } from "./chart.js";
import { fact, failure, h, meter, seconds, share, whole } from "./dom.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

const known = (names, runs) => names.filter((name) => runs[name])
  .map((name, index) => ({ name, colour: COLOURS[index % COLOURS.length], ...runs[name] }));

/** The progress of each run; `action` makes the button that stops or resumes it. */
export const cards = (names, runs, action) => known(names, runs).map((run) => progress(run, action(run)));

/** The curves of all runs in common charts. */
export function charts(names, runs) {
  const shown = known(names, runs);
  /** The lines of one quantity: of each run at each training step, and on its held-out images after each epoch. */
  const series = (quantity) => shown.flatMap(({ name, colour, steps, epochs, held_out: heldOut }) => {
    const whose = shown.length > 1 ? `${name}, ` : "", field = quantity.toLowerCase();
    return [
      { name: whose + t(`train${quantity}`), colour, x: steps.step, y: steps[field] },
      {
        name: whose + t(heldOut + quantity), colour, x: epochs.map((epoch) => epoch.step),
        y: epochs.map((epoch) => epoch[`test_${field}`]), dots: true, dashed: true,
      }];
  });
  const loss = series("Loss");
  const settled = loss.map((line) => line.y.filter((value) => value !== null))
    .flatMap((y) => y.slice(Math.min(3, y.length - 1)));
  return [h("section", { class: "panel" },
    h("div", { class: "two" },
      chart(t("loss"), loss, { low: 0, high: Math.max(...settled, 0.1) }),
      chart(t("accuracy"), series("Accuracy"), { low: 0, high: 1 })),
    h("p", { class: "small muted" }, t("trainMeans")))];
}

function progress({ name, colour, state, error, ...run }, button) {
  const last = run.epochs.at(-1), key = h("span", { class: "key" }), done = run.step / run.total_steps;
  key.style.color = colour;
  return h("section", { class: "panel stack" },
    h("div", { class: "spread" },
      h("h2", { class: "mono", tabindex: "-1", "data-key": `run ${name}` }, key, name),
      h("span", { class: "row" }, h("span", { class: "badge" }, t(`state ${state}`)), button)),
    error ? failure(complaint(error)) : "",
    state === "finished" || !run.total_steps ? "" : meter([[done, "macs"]], share(done)),
    h("dl", { class: "facts" },
      fact(t("trainStep"), whole(run.step) + (run.total_steps ? ` / ${whole(run.total_steps)}` : "")),
      fact(t("epochs"), `${last?.epoch ?? 0} / ${run.num_epochs ?? "?"}`),
      last ? [
        fact(t(`${run.held_out}Accuracy`), share(last.test_accuracy)),
        fact(t("trainAccuracy"), share(last.train_accuracy)), fact(t("speed"), whole(run.examples_per_second))] : "",
      state === "training" && run.seconds_left !== null ? fact(t("timeLeft"), seconds(run.seconds_left)) : "",
      last ? fact(t(state === "training" ? "timeSoFar" : "trainingTime"), seconds(last.elapsed_seconds)) : ""));
}
