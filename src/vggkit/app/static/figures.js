// The figures of a design, as the server counted them.

import { bytes, h, meter, share, short, table, whole } from "./dom.js";
import { t } from "./words.js";

const fact = (name, value, extra = "", kind = "") => h("div", { class: kind }, h("dt", { class: kind ? `key ${kind}` : "" }, name), h("dd", {}, value), extra ? h("dd", { class: "more" }, extra) : null);

/** The sums of one design, or of two in a table. */
export function facts(designs, batch) {
  const [{ total, memory, name }] = designs;
  if (designs.length === 1) {
    return [h("h2", { class: "mono" }, name), h("dl", { class: "facts" },
      fact(t("parameters"), whole(total.parameters), bytes(total.param_bytes), "parameters"),
      fact(t("macs"), short(total.macs), t("perBatch", batch), "macs"),
      fact(t("weightLayers"), whole(total.weight_layers)),
      fact(t("activations"), bytes(total.activation_bytes), t("perBatch", batch)),
      fact(t("toTrain"), bytes(memory.peak_bytes), t("perBatch", batch)),
      h("div", {}, h("dt", {}, t("speedHere")), h("dd", { "data-speed": 0 }, "…"), h("dd", { class: "more", "data-from": "" }, t("measuring"))))];
  }
  const row = (name, of) => [name, ...designs.map(of)];
  return [table([t("quantity"), ...designs.map((design) => h("span", { class: "mono" }, design.name))], [
    row(t("parameters"), (design) => whole(design.total.parameters)),
    row(`${t("macs")}, ${t("perBatch", batch)}`, (design) => short(design.total.macs)),
    row(t("weightLayers"), (design) => whole(design.total.weight_layers)),
    row(t("activations"), (design) => bytes(design.total.activation_bytes)),
    row(t("toTrain"), (design) => bytes(design.memory.peak_bytes)),
    row(t("speedHere"), (_, index) => h("span", { "data-speed": index }, "…")),
  ]), h("small", { class: "muted", "data-from": "" }, t("measuring"))];
}

/** Parameters and MACs by block or by layer; of two designs one below the other. */
export function costs(designs, byLayer, setByLayer, choose) {
  const button = (value, name) => h("button", { type: "button", "aria-pressed": String(byLayer === value), onclick: () => setByLayer(value) }, t(name));
  const bar = (part, of) => h("span", { class: of }, share(part[`${of}_share`]), meter([[part[`${of}_share`], ""]], share(part[`${of}_share`])));
  const shape = (output) => output.join(" × ");
  const tables = designs.map((design) => {
    if (byLayer) {
      const rows = design.layers.map((layer) => [
        h("button", { type: "button", class: "quiet mono", onclick: () => choose(layer.name) }, layer.name), shape(layer.output_shape.slice(1)),
        whole(layer.parameters), short(layer.macs), bytes(layer.activation_bytes), whole(layer.receptive_field), whole(layer.stride)]);
      return table([t("layer"), t("output"), t("parameters"), t("macs"), t("activations"), t("sees"), t("step")], rows, { label: design.name, caption: designs.length > 1 ? design.name : null });
    }
    const rows = design.parts.map((part) => [h("span", { class: "mono" }, part.name), part.kinds, shape(part.output_shape), whole(part.parameters), bar(part, "parameters"), short(part.macs), bar(part, "macs")]);
    const { total } = design;
    return table([t("part"), "", t("output"), h("span", { class: "key parameters" }, t("parameters")), "%", h("span", { class: "key macs" }, t("macs")), "%"], rows,
      { label: design.name, caption: designs.length > 1 ? design.name : null, foot: [t("total"), "", "", whole(total.parameters), "", short(total.macs), ""] });
  });
  return [h("div", { class: "row" }, button(false, "byBlock"), button(true, "byLayer")), ...tables];
}

/** The peak of a training step against this machine's memory. */
export function memory(designs) {
  return designs.flatMap(({ name, memory: step, memory_bytes: all }, index) => {
    const rest = step.peak_bytes - step.param_bytes - step.gradient_bytes - step.optimizer_bytes;
    const parts = [["parameters", step.param_bytes, "parameters"], ["gradients", step.gradient_bytes, "warn"], ["optimizerState", step.optimizer_bytes, "muted"], ["activations", rest, "macs"]].filter(([, value]) => value > 0);
    const most = Math.max(all, step.peak_bytes);
    return [
      designs.length > 1 ? h("h3", { class: "mono" }, name) : "",
      meter(parts.map(([, value, colour]) => [value / most, colour]), t("memoryTitle")),
      h("p", { class: "row small" }, parts.map(([key, value, colour]) => h("span", {}, h("span", { class: `key ${colour}` }, t(key)), ` ${bytes(value)}`))),
      h("p", { class: step.fits ? "" : "bad" }, t(step.fits ? "fits" : "fitsNot", bytes(step.peak_bytes), bytes(all)), " ", h("span", { "data-largest": index })),
      index === designs.length - 1 ? h("p", { class: "small muted" }, t("notCounted")) : ""];
  });
}

/** What takes longer to count: put into the places that `facts` and `memory` left for it. */
export function speedText(place, answer) {
  for (const [index, design] of answer.designs.entries()) {
    const speed = place.querySelector(`[data-speed="${index}"]`), largest = place.querySelector(`[data-largest="${index}"]`);
    if (speed && design.examples_per_second !== null) speed.textContent = design.examples_per_second < 10 ? design.examples_per_second.toPrecision(2) : whole(design.examples_per_second);
    if (largest) largest.textContent = design.largest_batch ? t("largestBatch", whole(design.largest_batch)) : t("noBatch");
  }
  const from = place.querySelector("[data-from]");
  if (from && answer.macs_per_second !== null) from.textContent = t("predicted", answer.measured);
}
