// The exercises that only training answers: what was measured of them here, or the command that measures.

import { ask, h, repaint, seconds, short, table, whole } from "./dom.js";
import { complaint, translated } from "./terms.js";
import { t } from "./words.js";

const EVERY = 2_000; // milliseconds between two looks at an exercise that is being measured

/** Sections for all of them; `isOpen` tells whether the view is still there. */
export async function lessons(isOpen) {
  return (await ask("/api/exercises")).map((exercise) => lesson(exercise, isOpen));
}

function lesson({ name, question }, isOpen) {
  const answer = h("div", { class: "stack", "aria-live": "polite" });
  const details = h("details", { ontoggle: () => details.open && look() }, h("summary", {}, t("answer")), answer);

  async function look() {
    try {
      const found = await ask("/api/exercise", { name });
      repaint(answer, ...(found.rows ? measured(found) : missing(found)));
      if (found.is_measuring && details.open && isOpen()) setTimeout(look, EVERY);
    } catch (error) {
      repaint(answer, h("p", { class: "error", role: "alert" }, error.message));
    }
  }

  async function act(path) {
    try {
      await ask(path, { name });
      await look();
    } catch (error) {
      answer.append(h("p", { class: "error", role: "alert" }, error.message));
    }
  }

  function missing({ trials, ended, is_measuring: isMeasuring, error }) {
    const words = isMeasuring ? t(trials ? "measuringTrials" : "measuringSteps", ended, trials) : trials ? t("measuredPart", ended, trials) : t("notMeasured");
    const button = isMeasuring ? h("button", { type: "button", onclick: () => act("/api/exercise/stop") }, t("stop"))
      : h("button", { type: "button", onclick: () => act("/api/exercise/measure") }, t("measureHere"));
    return [h("p", {}, words, " ", h("code", {}, `vgg experiment ${name}`)), error ? h("p", { class: "error", role: "alert" }, complaint(error)) : "", h("div", {}, button)];
  }
  return h("section", { class: "panel" }, h("h3", {}, translated(question)), details);
}

function measured({ sentences, shared, rows, seeds, hardware, seconds: took, folder }) {
  const within = ({ mean, high }, signed) => `${signed && mean > 0 ? "+" : ""}${mean.toFixed(3)}${high === null ? "" : ` ±${(high - mean).toFixed(3)}`}`;
  const cells = rows.map((row) => [h("span", { class: "mono" }, row.label), row.accuracy ? within(row.accuracy) : t("diverged"), row.difference ? within(row.difference, true) : "",
    row.against, short(row.parameters), short(row.macs), row.examples_per_second ? whole(row.examples_per_second) : ""]);
  return [
    h("div", {}, sentences.map((sentence) => h("p", {}, translated(sentence)))),
    table([t("column recipe"), t("column accuracy"), t("difference"), t("comparedWith"), t("parameters"), t("macs"), t("speed")], cells, { label: t("answer") }),
    h("p", { class: "small muted" }, t("measuredOn", translated(hardware.join(", ")), seconds(took), seeds, folder), h("br"), translated(shared))];
}
