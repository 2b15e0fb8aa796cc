// The figures of a design, as the server computed them.

import { button, bytes, coloured, fact, h, meter, mono, share, short, table, whole } from "./dom.js";
import { translated } from "./terms.js";
import { t } from "./words.js";

const speedOf = (index) => h("span", { "data-speed": index }, "…");
const measuredFrom = () => h("span", { "data-from": "" }, t("measuring"));

/** The totals of one design, or of two in a table. */
export function facts(designs, batch) {
  if (designs.length > 1) return comparison(designs, batch);
  const [{ total, memory: step, name }] = designs, perBatch = t("perBatch", batch);
  return [h("h2", { class: "mono" }, name), h("dl", { class: "facts" },
    fact(t("parameters"), whole(total.parameters), bytes(total.param_bytes), "parameters"),
    fact(t("macs"), short(total.macs), perBatch, "macs"),
    fact(t("weightLayers"), whole(total.weight_layers)),
    fact(t("layerOutputs"), bytes(total.activation_bytes), t("allOutputs")),
    fact(t("toTrain"), bytes(step.peak_bytes), perBatch),
    fact(t("speedHere"), speedOf(0), measuredFrom()))];
}

/** The totals of several designs in a table, one column each. */
export function comparison(designs, batch) {
  const row = (name, of) => [name, ...designs.map(of)];
  return [table([t("quantity"), ...designs.map((design) => mono(design.name))], [
    row(t("parameters"), ({ total }) => whole(total.parameters)),
    row(`${t("macs")}, ${t("perBatch", batch)}`, ({ total }) => short(total.macs)),
    row(t("weightLayers"), ({ total }) => whole(total.weight_layers)),
    row(`${t("layerOutputs")}, ${t("allOutputs")}`, ({ total }) => bytes(total.activation_bytes)),
    row(t("toTrain"), ({ memory: step }) => bytes(step.peak_bytes)),
    row(t("largestHere"), (_, index) => h("span", { "data-batch": index }, "…")),
    row(t("speedHere"), (_, index) => speedOf(index)),
  ]), h("small", { class: "muted" }, measuredFrom())];
}

const shape = (output) => output.join(" × ");

/** Parameters and MACs of each part of a design. */
export function partTable({ name, parts, total }, caption) {
  const bar = (portion, of) => h("span", { class: of }, share(portion), meter([[portion, ""]], share(portion)));
  const rows = parts.map((part) => [
    mono(part.name), translated(part.kinds), shape(part.output_shape), whole(part.parameters),
    bar(part.parameters_share, "parameters"), short(part.macs), bar(part.macs_share, "macs")]);
  const sums = [`${total.weight_layers} ${t("weightLayers")}`, "", whole(total.parameters), "", short(total.macs), ""];
  return table([t("part"), "", t("output"), coloured("parameters"), "%", coloured("macs"), "%"], rows,
    { label: name, caption, foot: [t("total"), ...sums] });
}

function layerTable({ name, layers }, caption, choose) {
  const head = ["layer", "output", "parameters", "macs", "outputBytes", "sees", "step"];
  const rows = layers.map((layer) => [
    button(layer.name, () => choose(layer.name), { class: "quiet mono" }), shape(layer.output_shape.slice(1)),
    whole(layer.parameters), short(layer.macs), bytes(layer.activation_bytes),
    whole(layer.receptive_field), whole(layer.stride)]);
  return table(head.map((each) => t(each)), rows, { label: name, caption });
}

/** Parameters and MACs by block or by layer, one table for each design. */
export function costs(designs, byLayer, setByLayer, choose) {
  const pressed = (value) => ({ "aria-pressed": String(byLayer === value) });
  const chosen = (value, name) => button(t(name), () => setByLayer(value), pressed(value));
  return [h("div", { class: "row" }, chosen(false, "byBlock"), chosen(true, "byLayer")), ...designs.map((design) => {
    const caption = designs.length > 1 ? design.name : null;
    return byLayer ? layerTable(design, caption, choose) : partTable(design, caption);
  })];
}

/** The peak of a training step against this machine's memory. */
export function memory(designs) {
  const panels = designs.flatMap(({ name, memory: step, memory_bytes: all }, index) => {
    const { peak_bytes: peak, param_bytes, gradient_bytes, optimizer_bytes } = step, most = Math.max(all, peak);
    const parts = [
      ["parameters", param_bytes, "parameters"], ["gradients", gradient_bytes, "warn"],
      ["optimizerState", optimizer_bytes, "muted"],
      ["activations", peak - param_bytes - gradient_bytes - optimizer_bytes, "macs"]].filter(([, value]) => value > 0);
    const key = ([part, value, colour]) => h("span", {}, coloured(part, colour), ` ${bytes(value)}`);
    return [
      designs.length > 1 ? h("h3", { class: "mono" }, name) : "",
      meter(parts.map(([, value, colour]) => [value / most, colour]), t("memoryTitle")),
      h("p", { class: "row small" }, parts.map(key)),
      h("p", { class: step.fits ? "" : "bad" }, t(step.fits ? "fits" : "fitsNot", bytes(peak), bytes(all)), " ",
        h("span", { "data-largest": index }))];
  });
  return [...panels, h("p", { class: "small muted" }, t("notCounted"))];
}

/** Fill in what takes longer to compute, where `facts`, `comparison` and `memory` have left room for it. */
export function measuredText(place, { designs, macs_per_second: speed, measured }) {
  const put = (name, words) => {
    for (const each of place.querySelectorAll(`[data-${name}]`)) each.textContent = words;
  };
  for (const [index, { examples_per_second: rate, largest_batch: largest }] of designs.entries()) {
    if (rate !== null) put(`speed="${index}"`, rate < 10 ? rate.toPrecision(2) : whole(rate));
    put(`largest="${index}"`, largest ? t("largestBatch", whole(largest)) : t("noBatch"));
    put(`batch="${index}"`, whole(largest));
  }
  if (speed !== null) put("from", t("predicted", translated(measured)));
}
