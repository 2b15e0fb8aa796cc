// Runs as they go on: the server tells of each change, and the browser asks again by itself if the line is lost.

import { chart, COLOURS } from "./chart.js";
import { h, meter, seconds, share, whole } from "./dom.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

export function follow(names, told) {
  const source = new EventSource(`/api/events?runs=${encodeURIComponent(names.join(","))}`);
  source.onmessage = (event) => told(JSON.parse(event.data));
  return source;
}

/** How far each run is, and the curves of all of them, one over the other. */
export function painted(names, runs) {
  const known = names.filter((name) => runs[name]);
  const series = (of, dots = false) => known.flatMap((name, index) => of(runs[name]).map((line) => ({ dots, colour: COLOURS[index % COLOURS.length], ...line, name: known.length > 1 ? `${name}, ${line.name}` : line.name })));
  const epochs = (run, field) => ({ x: run.epochs.map((epoch) => epoch.step), y: run.epochs.map((epoch) => epoch[field]) });
  const loss = series((run) => [
    { name: t("trainLoss"), x: run.steps.step, y: run.steps.loss },
    { name: t("testLoss"), ...epochs(run, "test_loss"), dots: true, dashed: true }]);
  const accuracy = series((run) => [
    { name: t("trainAccuracy"), x: run.steps.step, y: run.steps.accuracy },
    { name: t("testAccuracy"), ...epochs(run, "test_accuracy"), dots: true, dashed: true }]);
  const high = Math.max(...loss.map((line) => line.y.filter((value) => value !== null)).flatMap((y) => y.slice(Math.min(3, y.length - 1))), 0.1);
  return [
    ...known.map((name, index) => progress(name, runs[name], COLOURS[index % COLOURS.length])),
    h("section", { class: "panel two" }, chart(t("loss"), loss, { low: 0, high }), chart(t("accuracy"), accuracy, { low: 0, high: 1 }))];
}

function progress(name, run, colour) {
  const last = run.epochs.at(-1), fact = (term, value) => h("div", {}, h("dt", {}, term), h("dd", {}, value));
  const key = h("span", { class: "key" });
  key.style.color = colour;
  const done = run.total_steps ? run.step / run.total_steps : 0;
  return h("section", { class: "panel stack" },
    h("div", { class: "spread" }, h("h2", { class: "mono" }, key, name), h("span", { class: "badge" }, t(`state ${run.state}`))),
    run.error ? h("p", { class: "error", role: "alert" }, complaint(run.error)) : "",
    run.state === "finished" || !run.total_steps ? "" : meter([[done, "macs"]], share(done)),
    h("dl", { class: "facts" },
      fact(t("trainStep"), run.total_steps ? `${whole(run.step)} / ${whole(run.total_steps)}` : whole(run.step)),
      fact(t("epochs"), `${last?.epoch ?? 0} / ${run.num_epochs ?? "?"}`),
      last ? [fact(t("testAccuracy"), share(last.test_accuracy)), fact(t("trainAccuracy"), share(last.train_accuracy)), fact(t("speed"), whole(run.examples_per_second))] : "",
      run.state === "training" && run.seconds_left !== null ? fact(t("timeLeft"), seconds(run.seconds_left)) : "",
      last ? fact(t("elapsed"), seconds(last.elapsed_seconds)) : ""));
}
