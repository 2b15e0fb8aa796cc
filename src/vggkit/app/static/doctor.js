// The view "Will it learn?": one batch forward and backward, layer by layer, and what to change, by one click.

import { ask, button, clamped, counted, field, h, into, meter, mono, panel, table } from "./dom.js";
import { designOf, readAddress, writeAddress } from "./state.js";
import { inSentence, inWords, label, translated } from "./terms.js";
import { t } from "./words.js";

const asked = {
  init: "kaiming", optimizer: "sgd", learning_rate: 0.05, momentum: 0, batch_size: 8, data: "fashion-mnist-sample",
};

/** A value of the form, as a number if the field holds one. */
const made = (name, value) => (typeof asked[name] === "number" ? Number(value) : value);

export function open(main) {
  const form = h("section", { class: "panel stack" }), result = h("div", { class: "stack", "aria-live": "polite" });
  main.append(h("div", { class: "split" }, form, result));

  const start = button(t("examine"), run, { class: "primary" });

  async function fill() {
    const { datasets } = await ask("/api/runs"), { values } = readAddress();
    const designed = (name, rest) => field(label(name), values[name], {
      name, change: (value) => writeAddress({ values: { [name]: value } }), ...rest,
    });
    const one = (name, rest, words = label(name)) => field(words, asked[name], {
      name, change: (value) => { asked[name] = made(name, value); }, ...rest,
    });
    return [
      designed("network", { class: "mono" }),
      h("div", { class: "fields" },
        designed("image_size", { inputmode: "numeric" }),
        one("init", { choices: ["kaiming", "xavier", "paper", "torch"] }),
        one("optimizer", { choices: ["sgd", "adamw"] }),
        one("learning_rate", { inputmode: "decimal" }), one("momentum", { inputmode: "decimal" }),
        one("batch_size", { inputmode: "numeric" }, t("imagesInBatch")),
        h("div", { class: "wide" }, one("data", { choices: datasets }))),
      start];
  }

  function run() {
    const { values } = readAddress(), work = ask("/api/doctor", { ...asked, design: designOf(values) });
    return counted(result, work, painted, (seconds) => t("examining", values.network, seconds));
  }

  function change({ network, ...rest }) {
    if (network) writeAddress({ values: { network } });
    for (const [name, value] of Object.entries(rest)) asked[name] = made(name, value);
    into(form, fill()).then(() => start.click());
  }

  function painted({ verdict, loss, findings, tries, layers }) {
    const colour = { learns: "good", slow: "warn" }[verdict] ?? "bad";
    const advice = (found) => {
      const words = Object.entries(found).map(([name, value]) => `${inSentence(name)}: ${value}`).join(", ");
      return words && button(t("tryIt", words), () => change(found));
    };
    const said = (finding, index) => h("li", {}, inWords(translated(finding)), " ", advice(tries[index]));
    const changes = findings.map(said);
    const head = [t("layer"), t("output"), t("differs"), t("gradient"), "", t("relativeGradient"), t("dead")];
    return [
      h("section", { class: "panel" }, h("h2", { class: colour }, t(`verdict ${verdict}`)),
        h("p", {}, t("lossNow", loss === null ? "∞" : loss.toPrecision(3))),
        changes.length ? h("ul", {}, changes) : h("p", { class: "muted" }, t("nothingToChange"))),
      panel(t("layerByLayer"), h("p", { class: "small muted" }, t("barsHelp")),
        table(head, layers.map(row), { label: t("layerByLayer") }))];
  }

  const { init } = readAddress().values; // the tour's, which is examined at once
  if (!init) return void into(form, fill());
  writeAddress({ values: { init: "" } });
  change({ init });
}

/** The row of a layer; its bar shows the gradient on a log scale from 1e-12 to 1. */
function row({ name, output, contrast, gradient, relative_gradient: relative, dead }) {
  const length = gradient > 0 ? clamped(1 + Math.log10(gradient) / 12, 1) : 0;
  const bar = meter([[length, gradient > 1e-7 ? "macs" : "bad"]], String(gradient));
  const small = (value) => (value === null ? "∞" : value === 0 ? "0" : value.toExponential(1));
  const deadShare = dead === null ? "" : h("span", { class: dead > 0.75 ? "bad" : "" }, `${Math.round(100 * dead)}%`);
  return [mono(name), small(output), small(contrast), small(gradient), bar, small(relative), deadShare];
}
