// The view "Design": a network as text, as cards, as a drawing and as costs, all of which change together.

import { blockCards } from "./blocks.js";
import { costs, facts, memory, speedText } from "./figures.js";
import { ask, field, h, repaint } from "./dom.js";
import { receptiveFields } from "./sees.js";
import { readAddress, requestOf, writeAddress } from "./state.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

const HEADS = ["flatten", "adaptive", "conv", "gap"];
let view = null;

export function open(main) {
  const { values } = readAddress();
  view = { byLayer: false, family: [] };
  const left = h("div", { class: "stack" }, textPanel(values), restPanel(values));
  const parts = { facts: h("div"), drawing: h("div", { class: "drawing", tabindex: "0", role: "region", "aria-label": t("drawing") }), costs: h("div"), memory: h("div"), sees: h("div") };
  const panel = (title, body) => h("section", { class: "panel" }, h("h2", {}, t(title)), body);
  view.parts = parts;
  view.right = h("div", { class: "stack" },
    h("section", { class: "panel", "aria-live": "polite" }, parts.facts),
    panel("drawing", parts.drawing), panel("costsTitle", parts.costs),
    h("div", { class: "two" }, panel("memoryTitle", parts.memory), panel("seesTitle", parts.sees)));
  main.append(h("h1", {}, t("designTitle")), h("p", { class: "lead" }, t("designLead")), h("div", { class: "split" }, left, view.right));
  view.sees = receptiveFields(parts.sees, (layer) => light(layer));
  parts.drawing.addEventListener("pointerover", pointed);
  document.addEventListener("measured", measured);
  view.refreshed = refresh();
  return () => { document.removeEventListener("measured", measured); view.abort?.abort(); view = null; };
}

/** Known by one name, since an address that changes opens the view again, and a listener added twice is added once. */
function measured() {
  if (view.request) limits(view.request);
}

/** The address has changed: by the browser's own back and forward, or by hand. */
export function update() {
  const main = document.getElementById("view");
  view.abort?.abort();
  main.replaceChildren();
  open(main);
}

function textPanel(values) {
  view.error = h("p", { class: "error", role: "alert", id: "network-error" });
  view.input = h("input", {
    class: "mono", value: values.network, spellcheck: "false", autocomplete: "off", "aria-describedby": "network-error network-help",
    oninput: (event) => change({ network: event.target.value }),
  });
  view.chips = h("div", { class: "chips" });
  view.blocks = h("ul", { class: "blocks" });
  view.norm = h("input", { type: "checkbox", onchange: (event) => { const { checked } = event.target; settled(() => setBlocks(view.first.blocks, checked)); } });
  return h("section", { class: "panel" },
    h("label", {}, t("network"), view.input), h("p", { class: "small muted", id: "network-help" }, t("networkHelp")), view.error,
    view.chips, view.blocks,
    h("div", { class: "stack" },
      h("button", { type: "button", onclick: () => settled(() => setBlocks([...view.first.blocks, added(view.first.blocks)])) }, t("addBlock")),
      h("label", { class: "check" }, view.norm, t("batchNorm"))));
}

const added = (blocks) => {
  const last = blocks.at(-1) ?? { num_convs: 1, channels: 64 };
  return { num_convs: last.num_convs, channels: last.channels, kernels: Array(last.num_convs).fill(3), lrn: false };
};

function restPanel(values) {
  const one = (name, options = {}) => field(t(name), values[name], { oninput: (value) => change({ [name]: value }), inputmode: options.choices ? null : "numeric", name, ...options });
  view.pooled = one("pooled_size");
  view.hidden = one("hidden");
  view.besideError = h("p", { class: "error wide", role: "alert" });
  return h("section", { class: "panel stack late" },
    h("div", {}, h("h3", {}, t("theRest")), h("div", { class: "fields" },
      one("image_size"), one("in_channels"), one("num_classes"), one("head", { choices: HEADS }),
      view.hidden, one("dropout"), view.pooled)),
    h("div", {}, h("h3", {}, t("theStep")), h("div", { class: "fields" },
      one("batch_size"), one("optimizer", { choices: ["sgd", "momentum", "adamw"] }), one("dtype", { choices: ["float32", "bfloat16"] }))),
    h("div", {}, field(t("beside"), values.beside, { class: "mono", oninput: (value) => change({ beside: value }), name: "beside", placeholder: "vgg16_bn" }), view.besideError));
}

/** Something was changed by hand. */
function change(values) {
  writeAddress({ values });
  view.refreshed = refresh();
}

/** Once the server has answered for what was typed last: its blocks are those that `act` changes. */
async function settled(act) {
  await view?.refreshed;
  if (view?.first && view.input.getAttribute("aria-invalid") !== "true") act();
}

function setBlocks(blocks, norm = view.first.batch_norm) {
  const text = blocks.map((block) => {
    const kernels = [...new Set(block.kernels)].length === 1 ? (block.kernels[0] === 3 ? "" : `k${block.kernels[0]}`) : `k${block.kernels}`;
    return `${block.num_convs}x${block.channels}${kernels}${block.lrn ? "+lrn" : ""}`;
  }).join(" ") + (norm ? "_bn" : "");
  view.input.value = text;
  change({ network: text });
}

async function refresh() {
  const { values } = readAddress();
  view.abort?.abort();
  view.abort = new AbortController();
  const request = requestOf(values);
  let answer;
  try {
    answer = await ask("/api/design", request, view.abort.signal);
  } catch (error) {
    if (error.name !== "AbortError" && view) tell(view.error, { error: error.message });
    return;
  }
  if (view) paint(answer, values, request);
}

/** What the server says is wrong, with the word of the notation that it is about. */
function tell(place, { error, character }, text = "") {
  const start = character ? character - 1 : 0;
  const word = character ? text.slice(start).split(/[ ,]/)[0] || " " : "";
  place.replaceChildren(...(error ? [character ? h("span", { class: "mono" }, text.slice(0, start), h("mark", {}, word), text.slice(start + word.length), h("br")) : "", complaint(error)] : []));
}

function paint(answer, values, request) {
  const [first, second] = answer.designs;
  if (!view.family.length) {
    view.family = answer.family;
    view.chips.append(...answer.family.map((name) => h("button", { type: "button", class: "mono", onclick: () => { view.input.value = name; change({ network: name }); } }, name)));
  }
  for (const chip of view.chips.children) chip.setAttribute("aria-pressed", String(chip.textContent === first.name));
  tell(view.error, first.error ? first : {}, values.network);
  tell(view.besideError, second?.error ? second : {}, values.beside);
  view.input.setAttribute("aria-invalid", String(Boolean(first.error)));
  if (first.error) return;
  view.first = first;
  view.norm.checked = first.batch_norm;
  view.norm.disabled = !first.blocks.length;
  view.pooled.hidden = !["adaptive", "conv"].includes(first.options.head);
  view.hidden.hidden = first.options.head === "gap";
  blockCards(view.blocks, first.blocks, setBlocks);
  const drawn = new DOMParser().parseFromString(answer.svg, "image/svg+xml").documentElement;
  view.parts.drawing.replaceChildren(document.importNode(drawn, true));
  const good = answer.designs.filter((design) => !design.error);
  view.parts.facts.replaceChildren(...facts(good, request.batch_size));
  repaint(view.parts.costs, ...costs(good, view.byLayer, (byLayer) => { view.byLayer = byLayer; paint(answer, values, request); }, (layer) => view.sees.choose(layer)));
  view.parts.memory.replaceChildren(...memory(good));
  view.sees.show(first.layers, Number(first.options.image_size));
  view.request = good.length === answer.designs.length ? request : null;
  if (view.request) limits(request);
}

async function limits(request) {
  clearTimeout(view?.later);
  if (!view) return;
  view.later = setTimeout(async () => {
    try {
      const answer = await ask("/api/limits", request, view.abort.signal);
      if (view) speedText(view.right, answer);
    } catch { /* the next change asks again */ }
  }, 60);
}

/** The layer whose cuboid is under the mouse. */
function pointed(event) {
  const title = event.target.closest("g")?.querySelector(":scope > title");
  const name = title?.textContent.split(":")[0];
  if (name && name !== "image") view.sees.choose(name);
}

function light(name) {
  for (const title of view?.parts.drawing.querySelectorAll("g > title") ?? []) {
    title.parentElement.classList.toggle("lit", title.textContent.startsWith(`${name}:`));
  }
}
