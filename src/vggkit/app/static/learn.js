// The view "Learn": the chapter as a tour through the other views, and its exercises, answered by this machine.

import { ask, h, into } from "./dom.js";
import { comparison, measuredText, partTable } from "./figures.js";
import { fold, lessons } from "./lessons.js";
import { addressOf } from "./state.js";
import { t } from "./words.js";

const BOOK = { in_channels: 1, num_classes: 10 }, BATCH = 128;

/** Each step: its name in the texts, its view, and the values that the view opens with. */
const STEPS = [
  ["blocks", "design", { network: "vgg11" }],
  ["small", "design", { network: "2x64", beside: "1x64k5", in_channels: 64, image_size: 32, head: "gap" }],
  ["sees", "design", { network: "vgg16" }],
  ["doctor", "doctor", { network: "vgg11/4", image_size: 32, init: "torch" }],
  ["train", "train", { network: "vgg11_bn/4", image_size: 32, hidden: "", dropout: 0 }],
  ["inside", "inside", {}]];

/** Each exercise: its name in the texts, the designs whose figures answer it, and the design that it opens. */
const EXERCISES = [
  ["layers", [["vgg11", {}]]],
  ["alexnet", [["alexnet", {}], ["vgg11", {}]], { network: "vgg11", beside: "alexnet" }],
  ["size", [["vgg11", { image_size: 224 }], ["vgg11", { image_size: 96 }]], { network: "vgg11", image_size: 96 }],
  ["deeper", [["vgg16", {}], ["vgg19", {}]], { network: "vgg16", beside: "vgg19" }]];

const link = (view, values) => h("a", { href: addressOf(view, values) }, t("openIn", t(view)));

export function open(main) {
  const step = ([name, view, values], index) => h("li", { class: "panel" },
    h("h2", {}, `${index + 1}. ${t(name === view ? name : `tour ${name}`)}`),
    h("p", {}, t(`tour ${name} text`)), link(view, values));
  const trained = h("div", { class: "stack" });
  main.append(
    h("ol", { class: "tour" }, STEPS.map(step)),
    h("h2", { class: "above" }, t("exercises")), h("div", { class: "stack" }, EXERCISES.map(exercise)),
    h("h2", { class: "above" }, t("trainedExercises")), h("p", { class: "lead" }, t("trainedLead")), trained);
  into(trained, lessons());
}

function exercise([name, designs, values]) {
  const answer = h("div", { "aria-live": "polite" });
  const booked = ([text, options]) => ({ text, options: { ...BOOK, ...options } });
  const asked = { designs: designs.map(booked), batch_size: BATCH };

  async function figured() {
    const [counted, limits] = await Promise.all([ask("/api/design", asked), ask("/api/limits", asked)]);
    const tables = name === "layers" ? [partTable(counted.designs[0])] : comparison(counted.designs.map(named), BATCH);
    tables.forEach((each) => measuredText(each, limits));
    return [h("p", {}, t(`exercise ${name} answer`)), ...tables, values ? h("p", {}, link("design", values)) : ""];
  }

  const named = (design, index) => {
    const [text, { image_size: size }] = designs[index];
    return { ...design, name: size ? `${text}, ${size} px` : text };
  };
  return h("section", { class: "panel" }, h("h3", {}, t(`exercise ${name}`)),
    fold(name, answer, () => into(answer, figured())));
}
