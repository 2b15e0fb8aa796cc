// The exercises that only training answers: what was measured on this machine, and the experiment that measures it.

import { ask, button, failure, h, into, meter, mono, pause, seconds, share, short, table, whole } from "./dom.js";
import { complaint, translated } from "./terms.js";
import { t } from "./words.js";

const EVERY = 2_000; // milliseconds between two requests about an exercise that is being measured
const opened = new Set(); // the answers that the person has left open

/** The details with `answer`, which `look` fills when they are opened; they are still open when the view is back. */
export function fold(name, answer, look) {
  const toggled = ({ target }) => {
    if (!target.open) return opened.delete(name);
    opened.add(name);
    look();
  };
  return h("details", { open: opened.has(name), ontoggle: toggled }, h("summary", {}, t("answer")), answer);
}

/** A section for each exercise. */
export const lessons = async () => (await ask("/api/exercises")).map(lesson);

function lesson({ name, question }) {
  const answer = h("div", { class: "stack", "aria-live": "polite" }), details = fold(name, answer, look);
  let isStopping = false;

  function look() {
    into(answer, ask("/api/exercise", { name }, name).then((found) => {
      isStopping &&= found.is_measuring;
      if (found.is_measuring && details.open) pause(EVERY, name).then(look);
      const isAnswered = found.trials > 0 && found.ended === found.trials;
      return [isAnswered ? "" : own(found), ...found.answers.map(measured)];
    }));
  }

  function act(path, { target }) {
    if (isStopping) return null;
    isStopping = path.endsWith("stop");
    if (isStopping) target.textContent = t("stop asked");
    return ask(path, { name }).then(look, (error) => { isStopping = false; answer.append(failure(error.message)); });
  }

  /** How far the page's own experiment is, and the button that starts, stops or resumes it. */
  function own({ trials, ended, now, share: done, is_measuring: isMeasuring, error }) {
    const going = isMeasuring ? "measuring" : "measured", [verb, path] = isMeasuring
      ? [isStopping ? "stop asked" : "stop", "/api/exercise/stop"]
      : [trials ? "resume" : "measureHere", "/api/exercise/measure"];
    return h("div", { class: "panel stack" },
      h("p", {}, t(`${going} ${trials ? "trials" : "nothing"}`, ended, trials, now),
        " ", isMeasuring ? "" : h("code", {}, `vgg experiment ${name}`)),
      trials ? meter([[done, "macs"]], share(done)) : "", error ? failure(complaint(error)) : "",
      h("div", {}, button(t(verb), (event) => act(path, event), { "data-key": `act ${name}` })));
  }
  return h("section", { class: "panel" }, h("h3", {}, translated(question)), details);
}

/** A mean and half the width of its interval, if there is one. */
function within({ mean, high }, sign = "") {
  return `${mean > 0 ? sign : ""}${mean.toFixed(3)}${high === null ? "" : ` ±${(high - mean).toFixed(3)}`}`;
}

function measured({ sentences, shared, rows, seeds, hardware, seconds: took, folder, data, epochs }) {
  const head = ["column recipe", "column accuracy", "difference", "comparedWith", "parameters", "macs", "speed"];
  const cells = rows.map((row) => [
    mono(row.label), row.accuracy ? within(row.accuracy) : t("diverged"),
    row.difference ? within(row.difference, "+") : "", row.against,
    short(row.parameters), short(row.macs), row.examples_per_second ? whole(row.examples_per_second) : ""]);
  return h("div", {},
    h("h4", {}, t("measuredOn", data.join(", "), epochs.join("–"), folder)),
    sentences.map((sentence) => h("p", {}, translated(sentence))),
    table(head.map((name) => t(name)), cells, { label: t("answer") }),
    h("p", { class: "small muted" },
      t("measuredBy", translated(hardware.join(", ")), seconds(took), seeds), h("br"), translated(shared)));
}
