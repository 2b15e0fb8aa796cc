// The progress and the curves of the chosen runs.

import { chart, COLOURS } from "./chart.js";
import { fact, failure, h, meter, seconds, share, whole } from "./dom.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

/** The progress of each run, and the curves of all of them in common charts. */
export function painted(names, runs) {
  const known = names.filter((name) => runs[name]);
  const colourOf = (index) => COLOURS[index % COLOURS.length];
  /** The lines of one quantity: of each run at each training step, and on the test images after each epoch. */
  const series = (quantity) => known.flatMap((name, index) => {
    const { steps, epochs } = runs[name], colour = colourOf(index), whose = known.length > 1 ? `${name}, ` : "";
    const line = (kind, rest) => ({ name: whose + t(kind + quantity), colour, ...rest });
    const field = `test_${quantity.toLowerCase()}`;
    return [
      line("train", { x: steps.step, y: steps[quantity.toLowerCase()] }),
      line("test", {
        x: epochs.map((epoch) => epoch.step), y: epochs.map((epoch) => epoch[field]), dots: true, dashed: true,
      })];
  });
  const loss = series("Loss");
  const settled = loss.map((line) => line.y.filter((value) => value !== null))
    .flatMap((y) => y.slice(Math.min(3, y.length - 1)));
  return [
    ...known.map((name, index) => progress(name, runs[name], colourOf(index))),
    h("section", { class: "panel two" },
      chart(t("loss"), loss, { low: 0, high: Math.max(...settled, 0.1) }),
      chart(t("accuracy"), series("Accuracy"), { low: 0, high: 1 }))];
}

function progress(name, run, colour) {
  const last = run.epochs.at(-1), key = h("span", { class: "key" });
  key.style.color = colour;
  const done = run.total_steps ? run.step / run.total_steps : 0;
  return h("section", { class: "panel stack" },
    h("div", { class: "spread" },
      h("h2", { class: "mono" }, key, name), h("span", { class: "badge" }, t(`state ${run.state}`))),
    run.error ? failure(complaint(run.error)) : "",
    run.state === "finished" || !run.total_steps ? "" : meter([[done, "macs"]], share(done)),
    h("dl", { class: "facts" },
      fact(t("trainStep"), whole(run.step) + (run.total_steps ? ` / ${whole(run.total_steps)}` : "")),
      fact(t("epochs"), `${last?.epoch ?? 0} / ${run.num_epochs ?? "?"}`),
      last ? [
        fact(t("testAccuracy"), share(last.test_accuracy)), fact(t("trainAccuracy"), share(last.train_accuracy)),
        fact(t("speed"), whole(run.examples_per_second))] : "",
      run.state === "training" && run.seconds_left !== null ? fact(t("timeLeft"), seconds(run.seconds_left)) : "",
      last ? fact(t("elapsed"), seconds(last.elapsed_seconds)) : ""));
}
