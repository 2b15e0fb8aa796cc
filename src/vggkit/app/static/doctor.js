// The view "Will it learn?": one batch forward and backward, layer by layer, and what to change, by one click.

import { ask, counted, field, h, repaint, table } from "./dom.js";
import { designOf, readAddress, writeAddress } from "./state.js";
import { translated } from "./terms.js";
import { t } from "./words.js";

const START = { init: "kaiming", optimizer: "sgd", learning_rate: 0.05, momentum: 0, batch_size: 8, data: "fashion-mnist-sample" };
let asked = { ...START };

export function open(main) {
  const form = h("section", { class: "panel stack" }), result = h("div", { class: "stack", "aria-live": "polite" });
  main.append(h("h1", {}, t("doctorTitle")), h("p", { class: "lead" }, t("doctorLead")), h("div", { class: "split" }, form, result));

  async function fill() {
    const { datasets } = await ask("/api/runs");
    const { values } = readAddress();
    const set = (name, made = (value) => value) => ({ name, oninput: (value) => { asked[name] = made(value); } });
    repaint(form,
      field(t("network"), values.network, { class: "mono", name: "network", oninput: (network) => writeAddress({ values: { network } }) }),
      h("div", { class: "fields" },
        field(t("image_size"), values.image_size, { name: "image_size", inputmode: "numeric", oninput: (image_size) => writeAddress({ values: { image_size } }) }),
        field(t("init"), asked.init, { choices: ["kaiming", "xavier", "paper", "torch"], ...set("init") }),
        field(t("optimizer"), asked.optimizer, { choices: ["sgd", "adamw"], ...set("optimizer") }),
        field(t("learning_rate"), asked.learning_rate, { inputmode: "decimal", ...set("learning_rate", Number) }),
        field(t("momentum"), asked.momentum, { inputmode: "decimal", ...set("momentum", Number) }),
        field(t("imagesInBatch"), asked.batch_size, { inputmode: "numeric", ...set("batch_size", Number) }),
        h("div", { class: "wide" }, field(t("data"), asked.data, { choices: datasets, ...set("data") }))),
      h("button", { type: "button", class: "primary", onclick: run }, t("examine")));
  }

  function run() {
    const { values } = readAddress();
    return counted(result, (seconds) => t("examining", values.network, seconds), () => ask("/api/doctor", { ...asked, design: designOf(values) }), painted);
  }

  function change(tries) {
    const { network, ...rest } = tries;
    if (network) writeAddress({ values: { network } });
    for (const [name, value] of Object.entries(rest)) asked[name] = typeof START[name] === "number" ? Number(value) : value;
    fill().then(run);
  }

  function painted(found) {
    const good = found.verdict === "learns";
    const changes = found.findings.map((finding, index) => h("li", {}, translated(finding), " ",
      Object.keys(found.tries[index]).length ? h("button", { type: "button", onclick: () => change(found.tries[index]) }, t("tryIt", Object.entries(found.tries[index]).map((pair) => pair.join(" ")).join(", "))) : ""));
    return [
      h("section", { class: "panel" },
        h("h2", { class: good ? "good" : found.verdict === "slow" ? "warn" : "bad" }, t(`verdict ${found.verdict}`)),
        h("p", {}, t(`about ${found.verdict}`), " ", t("lossNow", found.loss === null ? "∞" : found.loss.toPrecision(3))),
        changes.length ? h("ul", {}, changes) : h("p", { class: "muted" }, t("nothingToChange"))),
      h("section", { class: "panel" }, h("h2", {}, t("layerByLayer")), h("p", { class: "small muted" }, t("barsHelp")),
        table([t("layer"), t("output"), t("differs"), t("gradient"), "", t("relativeGradient"), t("dead")], found.layers.map(row), { label: t("layerByLayer") }))];
  }

  fill().catch((error) => form.replaceChildren(h("p", { class: "error" }, error.message)));
}

/** A layer; the bar has the gradient from 1e-12 to 1, by powers of ten. */
function row(layer) {
  const bar = h("span", { class: `meter ${layer.gradient > 1e-7 ? "macs" : "bad"}`, role: "img", "aria-label": String(layer.gradient) }, h("i"));
  bar.firstChild.style.width = `${layer.gradient > 0 ? Math.max(0, Math.min(100, 100 * (1 + Math.log10(layer.gradient) / 12))) : 0}%`;
  const small = (value) => (value === null ? "∞" : value === 0 ? "0" : value.toExponential(1));
  const dead = layer.dead === null ? "" : h("span", { class: layer.dead > 0.75 ? "bad" : "" }, `${Math.round(100 * layer.dead)}%`);
  return [h("span", { class: "mono" }, layer.name), small(layer.output), small(layer.contrast), small(layer.gradient), bar, small(layer.relative_gradient), dead];
}
