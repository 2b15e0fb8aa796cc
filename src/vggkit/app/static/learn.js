// The view "Learn": the chapter as a tour through the other views, and its exercises, answered by this machine.

import { ask, bytes, h, share, short, table, whole } from "./dom.js";
import { lessons } from "./lessons.js";
import { DEFAULTS } from "./state.js";
import { t } from "./words.js";

const BOOK = { in_channels: 1, num_classes: 10 };
const link = (view, values) => `#/${view}?${new URLSearchParams(Object.fromEntries(Object.entries(values).filter(([name, value]) => String(value) !== (DEFAULTS[name] ?? ""))))}`;

/** Each step: what it is called in the texts, and where it leads. */
const STEPS = [
  ["blocks", "design", { network: "vgg11" }],
  ["small", "design", { network: "2x64", beside: "1x64k5", in_channels: 64, image_size: 32, head: "gap" }],
  ["sees", "design", { network: "vgg16" }],
  ["start", "doctor", { network: "vgg11/4", image_size: 32 }],
  ["train", "train", { network: "vgg11_bn/4", image_size: 32, hidden: "", dropout: 0 }],
  ["inside", "inside", {}]];

/** Each exercise: the designs whose figures answer it, and what it leads to. */
const EXERCISES = [
  ["layers", [["vgg11", {}]]],
  ["alexnet", [["alexnet", {}], ["vgg11", {}]], { network: "vgg11", beside: "alexnet" }],
  ["size", [["vgg11", { image_size: 224 }], ["vgg11", { image_size: 96 }]], { network: "vgg11", image_size: 96 }],
  ["deeper", [["vgg16", {}], ["vgg19", {}]], { network: "vgg16", beside: "vgg19" }]];

export function open(main) {
  const step = ([name, view, values], index) => h("li", { class: "panel" }, h("h2", {}, `${index + 1}. ${t(`tour ${name}`)}`), h("p", {}, t(`tour ${name} text`)), h("a", { href: link(view, values) }, t("openIn", t(view))));
  const trained = h("div", { class: "stack" });
  main.append(h("h1", {}, t("learnTitle")), h("p", { class: "lead" }, t("learnLead")),
    h("ol", { class: "tour" }, STEPS.map(step)), h("h2", { class: "above" }, t("exercises")),
    h("div", { class: "stack" }, EXERCISES.map(exercise)), h("h2", { class: "above" }, t("trainedExercises")), h("p", { class: "lead" }, t("trainedLead")), trained);
  let isOpen = true;
  lessons(() => isOpen).then((sections) => trained.replaceChildren(...sections), (error) => trained.replaceChildren(h("p", { class: "error" }, error.message)));
  return () => { isOpen = false; };
}

function exercise([name, designs, values]) {
  const answer = h("div", { "aria-live": "polite" });
  const show = async () => {
    try {
      const asked = { designs: designs.map(([text, options]) => ({ text, options: { ...BOOK, ...options } })), batch_size: 128 };
      const [counted, speeds] = await Promise.all([ask("/api/design", asked), ask("/api/limits", asked)]);
      const names = designs.map(([text, options]) => (options.image_size ? `${text}, ${options.image_size} px` : text));
      answer.replaceChildren(h("p", {}, t(`exercise ${name} answer`)), name === "layers" ? parts(counted.designs[0]) : figures(names, counted.designs, speeds.designs),
        values ? h("p", {}, h("a", { href: link("design", values) }, t("openIn", t("design")))) : "");
    } catch (error) {
      answer.replaceChildren(h("p", { class: "error", role: "alert" }, error.message));
    }
  };
  return h("section", { class: "panel" }, h("h3", {}, t(`exercise ${name}`)), h("details", { ontoggle: (event) => event.target.open && show() }, h("summary", {}, t("answer")), answer));
}

function parts(design) {
  return table([t("part"), "", t("output"), t("parameters")], design.parts.map((part) => [h("span", { class: "mono" }, part.name), part.kinds, part.output_shape.join(" × "), `${whole(part.parameters)} (${share(part.parameters_share)})`]),
    { foot: [t("total"), whole(design.total.weight_layers), "", whole(design.total.parameters)], label: design.name });
}

function figures(names, designs, speeds) {
  const row = (name, of) => [name, ...designs.map(of)];
  return table([t("quantity"), ...names.map((name) => h("span", { class: "mono" }, name))], [
    row(t("parameters"), (design) => whole(design.total.parameters)),
    row(`${t("macs")}, ${t("perBatch", 128)}`, (design) => short(design.total.macs)),
    row(t("activations"), (design) => bytes(design.total.activation_bytes)),
    row(t("toTrain"), (design) => bytes(design.memory.peak_bytes)),
    row(t("largestHere"), (_, index) => whole(speeds[index].largest_batch)),
    row(t("speedPredicted"), (_, index) => (speeds[index].examples_per_second === null ? t("measuring") : speeds[index].examples_per_second.toPrecision(3)))]);
}
