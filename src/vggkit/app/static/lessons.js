// The exercises that only training answers: what was measured on this machine, or the command that measures it.

import { ask, button, failure, h, into, mono, seconds, short, table, whole } from "./dom.js";
import { complaint, translated } from "./terms.js";
import { t } from "./words.js";

const EVERY = 2_000; // milliseconds between two requests about an exercise that is being measured

/** A section for each exercise; `isOpen` tells whether the view is still shown. */
export async function lessons(isOpen) {
  return (await ask("/api/exercises")).map((exercise) => lesson(exercise, isOpen));
}

function lesson({ name, question }, isOpen) {
  const answer = h("div", { class: "stack", "aria-live": "polite" });
  const details = h("details", { ontoggle: () => details.open && look() }, h("summary", {}, t("answer")), answer);

  const look = () => into(answer, ask("/api/exercise", { name }).then((found) => {
    if (found.is_measuring && details.open && isOpen()) setTimeout(look, EVERY);
    return found.rows ? measured(found) : missing(found);
  }));
  const act = (path) => ask(path, { name }).then(look, (error) => answer.append(failure(error.message)));

  function missing({ trials, ended, is_measuring: isMeasuring, error }) {
    const going = isMeasuring ? t(trials ? "measuringTrials" : "measuringSteps", ended, trials) : null;
    const words = going ?? (trials ? t("measuredPart", ended, trials) : t("notMeasured"));
    const [verb, path] = isMeasuring ? ["stop", "/api/exercise/stop"] : ["measureHere", "/api/exercise/measure"];
    return [
      h("p", {}, words, " ", h("code", {}, `vgg experiment ${name}`)), error ? failure(complaint(error)) : "",
      h("div", {}, button(t(verb), () => act(path)))];
  }
  return h("section", { class: "panel" }, h("h3", {}, translated(question)), details);
}

/** A mean and half the width of its interval, if there is one. */
function within({ mean, high }, sign = "") {
  return `${mean > 0 ? sign : ""}${mean.toFixed(3)}${high === null ? "" : ` ±${(high - mean).toFixed(3)}`}`;
}

function measured({ sentences, shared, rows, seeds, hardware, seconds: took, folder }) {
  const head = ["column recipe", "column accuracy", "difference", "comparedWith", "parameters", "macs", "speed"];
  const cells = rows.map((row) => [
    mono(row.label), row.accuracy ? within(row.accuracy) : t("diverged"),
    row.difference ? within(row.difference, "+") : "", row.against,
    short(row.parameters), short(row.macs), row.examples_per_second ? whole(row.examples_per_second) : ""]);
  return [
    h("div", {}, sentences.map((sentence) => h("p", {}, translated(sentence)))),
    table(head.map((name) => t(name)), cells, { label: t("answer") }),
    h("p", { class: "small muted" },
      t("measuredOn", translated(hardware.join(", ")), seconds(took), seeds, folder), h("br"), translated(shared))];
}
