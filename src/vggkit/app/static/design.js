// The view "Design": a network as text, as cards, as a drawing and as costs, all of which change together.

import { blockCards, written } from "./blocks.js";
import { costs, facts, measuredText, memory } from "./figures.js";
import { ask, blame, button, failure, field, h, panel, pause, region, repaint } from "./dom.js";
import { receptiveFields } from "./sees.js";
import { readAddress, requestOf, writeAddress } from "./state.js";
import { complaint, label, translated } from "./terms.js";
import { t } from "./words.js";

let view = null;

export function open(main) {
  const { values } = readAddress(), drawing = region(t("drawing"), [], "drawing");
  const parts = { facts: h("div"), drawing, costs: h("div"), memory: h("div"), sees: h("div") };
  view = { byLayer: false, family: [], parts, shown: [], edits: [] };
  view.right = h("div", { class: "stack", hidden: true },
    h("section", { class: "panel", "aria-live": "polite" }, parts.facts),
    panel(t("drawing"), drawing), panel(t("costsTitle"), parts.costs),
    h("div", { class: "two" }, panel(t("memoryTitle"), parts.memory), panel(t("seesTitle"), parts.sees)));
  view.rest = restPanel(values);
  const left = h("div", { class: "stack" }, textPanel(values), view.rest);
  main.append(h("div", { class: "split" }, left, view.right));
  view.sees = receptiveFields(parts.sees, light);
  drawing.addEventListener("pointerover", pointed);
  document.addEventListener("measured", measured);
  refresh();
  return () => document.removeEventListener("measured", measured);
}

const measured = () => view.request && limits(view.request);

function textPanel(values) {
  view.error = h("p", { class: "error", role: "alert", id: "network-error" });
  view.input = h("input", {
    class: "mono", value: values.network, spellcheck: "false", autocomplete: "off",
    "aria-describedby": "network-error network-help", oninput: () => setText(view.input.value),
  });
  view.chips = h("div", { class: "chips" });
  const list = h("ul", { class: "blocks" }), first = { num_convs: 1, channels: 64 };
  const add = () => edit((blocks) => [...blocks, { ...first, ...blocks.at(-1), kernels: [3], lrn: false }]);
  view.cards = blockCards(list, edit);
  view.norm = h("input", { type: "checkbox", onchange: () => edit((blocks) => blocks, view.norm.checked) });
  return h("section", { class: "panel" },
    h("label", {}, t("network"), view.input), h("p", { class: "small muted", id: "network-help" }, t("networkHelp")),
    view.error, view.chips, list,
    h("div", { class: "stack" },
      button(t("addBlock"), add), h("label", { class: "check" }, view.norm, t("batchNorm"))));
}

function restPanel(values) {
  const one = (name, choices, rest) => field(label(name), values[name], {
    name, choices, inputmode: choices ? null : "numeric", change: (value) => change({ [name]: value }), ...rest,
  });
  view.pooled = one("pooled_size");
  view.hidden = one("hidden");
  view.besideError = failure("");
  return h("section", { class: "panel stack late" },
    h("div", {}, h("h3", {}, t("theRest")), h("div", { class: "fields" },
      one("image_size"), one("in_channels"), one("num_classes"), one("head", ["flatten", "adaptive", "conv", "gap"]),
      view.hidden, one("dropout"), view.pooled)),
    h("div", {}, h("h3", {}, t("theStep")), h("div", { class: "fields" },
      one("batch_size"), one("optimizer", ["sgd", "momentum", "adamw"]), one("dtype", ["float32", "bfloat16"]))),
    h("div", {}, one("beside", null, { class: "mono", inputmode: null, placeholder: "vgg16_bn" }), view.besideError));
}

/** Take over values that the person has changed. */
const change = (values) => { writeAddress({ values }); refresh(); };

/** Apply `made` to the blocks: at once, or as soon as the server has read those of a text just typed. */
function edit(made, norm) {
  if (!view.blocks) return void view.edits.push([made, norm]);
  const blocks = made(view.blocks), suffix = norm ?? view.norm.checked ? "_bn" : "";
  setText(blocks.map(written).join(" ") + suffix);
  show(blocks);
}

function show(blocks) {
  view.blocks = view.shown = blocks;
  view.cards(blocks);
}

/** Take over a text; the server tells its blocks. */
const setText = (network) => { view.blocks = null; view.input.value = network; change({ network }); };

function refresh() {
  const { values } = readAddress(), request = requestOf(values);
  ask("/api/design", request, "design").then(
    (answer) => paint(answer, values, request), (error) => tell(view.error, { error: error.message }))
    .finally(() => {
      const edits = view.edits.splice(0);
      if (view.blocks) for (const each of edits) edit(...each);
      view.blocks ??= view.shown;
    });
}

/** Put the texts of a drawing into the page's language; its caption is the last of them, over several lines. */
function translateTexts(drawn) {
  const texts = [...drawn.querySelectorAll("text")].filter((text) => !text.children.length);
  const start = texts.findIndex((text) => text.textContent.startsWith("A cuboid"));
  for (const text of texts.slice(0, start)) text.textContent = translated(text.textContent);
  const lines = texts.slice(start), caption = lines.map((line) => line.textContent).join(" ");
  const said = translated(caption).split("\n");
  if (said[0] !== caption) lines.forEach((line, index) => { line.textContent = said[index] ?? ""; });
}

/** Show an error of the server, and mark the word of the notation that it is about. */
function tell(place, { error, character }, text = "") {
  place.replaceChildren();
  if (character) {
    const start = character - 1, word = text.slice(start).split(/[ ,]/)[0] || " ";
    const marked = [text.slice(0, start), h("mark", {}, word), text.slice(start + word.length)];
    place.append(h("span", { class: "mono" }, ...marked, h("br")));
  }
  if (error) place.append(complaint(error));
}

function paint(answer, values, request) {
  const [first, second] = answer.designs, { parts } = view;
  if (!view.family.length) {
    view.family = answer.family;
    view.chips.append(...answer.family.map((name) => button(name, () => setText(name), { class: "mono" })));
  }
  for (const chip of view.chips.children) chip.setAttribute("aria-pressed", String(chip.textContent === first.name));
  tell(view.error, first.error ? first : {}, values.network);
  tell(view.besideError, second?.error ? second : {}, values.beside);
  const isElsewhere = blame(view.rest, first.error);
  view.input.setAttribute("aria-invalid", String(Boolean(first.error && !isElsewhere)));
  view.right.classList.toggle("stale", Boolean(first.error));
  if (first.error) return;
  view.right.hidden = false;
  view.norm.checked = first.batch_norm;
  view.norm.disabled = !first.blocks.length;
  view.pooled.hidden = !["adaptive", "conv"].includes(first.options.head);
  view.hidden.hidden = first.options.head === "gap";
  show(first.blocks);
  const drawn = new DOMParser().parseFromString(answer.svg, "image/svg+xml").documentElement;
  translateTexts(drawn);
  parts.drawing.replaceChildren(document.importNode(drawn, true));
  const good = answer.designs.filter((design) => !design.error);
  parts.facts.replaceChildren(...facts(good, request.batch_size));
  const paintCosts = (byLayer) => {
    view.byLayer = byLayer;
    repaint(parts.costs, ...costs(good, byLayer, paintCosts, view.sees.choose));
  };
  paintCosts(view.byLayer);
  parts.memory.replaceChildren(...memory(good));
  view.sees.show(first.layers, Number(first.options.image_size));
  view.request = { ...request, designs: request.designs.filter((_, index) => !answer.designs[index].error) };
  limits(view.request);
}

async function limits(request) {
  await pause(60, "limits");
  const answer = await ask("/api/limits", request, "limits").catch(() => null); // the next change asks again
  if (answer) measuredText(view.right, answer);
}

/** Choose the layer whose cuboid is under the mouse. */
function pointed(event) {
  const title = event.target.closest("g")?.querySelector(":scope > title");
  const name = title?.textContent.split(":")[0];
  if (name && name !== "image") view.sees.choose(name);
}

function light(name) {
  for (const title of view.parts.drawing.querySelectorAll("g > title")) {
    title.parentElement.classList.toggle("lit", title.textContent.startsWith(`${name}:`));
  }
}
