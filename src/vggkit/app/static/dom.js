// Elements, requests and numbers as the page writes them.

import { complaint } from "./terms.js";
import { t } from "./words.js";

/** An HTML element: attributes `on…` are listeners; those that are null or false are left out. */
export const h = (tag, attributes, ...children) => filled(document.createElement(tag), attributes, children);

/** An SVG element, with the same rules. */
export const s = (tag, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function filled(element, attributes = {}, children = []) {
  const isGiven = (value) => value !== null && value !== undefined && value !== false;
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (["value", "checked", "disabled", "selected"].includes(name)) element[name] = value;
    else if (isGiven(value)) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter(isGiven));
  return element;
}

/** A button. If a click began work, clicks are ignored until it is done, as is the second one of a double click. */
export function button(words, onclick, rest = {}) {
  let hasWorked = false;
  const clicked = (event) => {
    if (made.ariaDisabled || (hasWorked && event.detail > 1)) return;
    const work = onclick(event);
    hasWorked = work instanceof Promise;
    if (!hasWorked) return;
    made.ariaDisabled = "true";
    work.finally(() => { made.ariaDisabled = null; });
  };
  const made = h("button", { type: "button", onclick: onclick && clicked, ...rest }, words);
  return made;
}

export const mono = (words) => h("span", { class: "mono" }, words);
export const failure = (message) => h("p", { class: "error", role: "alert" }, message);
export const panel = (title, ...children) => h("section", { class: "panel" }, h("h2", {}, title), ...children);
export const coloured = (name, colour = name) => h("span", { class: `key ${colour}` }, t(name));

/** A region that scrolls sideways, by mouse or keys, if its content is wider than the page. */
export function region(label, content, kind = "scroll") {
  return h("div", { class: kind, tabindex: "0", role: "region", "aria-label": label }, content);
}

/** A small picture, enlarged without smoothing, with its caption. */
export function picture(src, alt, caption = alt, kind = "") {
  return h("figure", {}, h("img", { src, alt, class: `pixels ${kind}` }), h("figcaption", {}, caption));
}

/** A term, its value, and a note below it. */
export function fact(term, value, more = null, kind = "") {
  return h("div", { class: kind }, h("dt", { class: kind && `key ${kind}` }, term), h("dd", {}, value),
    more && h("dd", { class: "more" }, more));
}

/** A row with a name, a bar, and its length in words. */
export function barRow(name, length, colour, words) {
  return h("div", { class: "bar-row" }, h("span", {}, name), meter([[length, colour]], words), h("span", {}, words));
}

/** Listeners that make an element a drop target; `dropped` gets the data. */
export function droppable(dropped) {
  const over = (event, isOver) => { event.preventDefault(); event.currentTarget.classList.toggle("over", isOver); };
  return {
    ondragover: (event) => over(event, true),
    ondragleave: (event) => over(event, false),
    ondrop: (event) => { over(event, false); dropped(event.dataTransfer); },
  };
}

/** The options of a list; an empty choice is shown as `empty`. */
export function options(choices, chosen, empty = "") {
  return choices.map((value) => h("option", { value, selected: value === chosen }, value || empty));
}

/** A labelled text field, or a list of `choices`; `change` gets the new value. */
export function field(label, value, { choices, change, ...rest }) {
  const told = (event) => change(event.target.value);
  return h("label", {}, label, choices
    ? h("select", { onchange: told, ...rest }, options(choices, value))
    : h("input", { value: value ?? "", oninput: told, autocomplete: "off", spellcheck: "false", ...rest }));
}

const REACHED = "a[href], button:not(:disabled), input, select, summary, [tabindex]";

/** Replace what `place` holds; a focus inside it moves to the control with the same key, or at the same place. */
export function repaint(place, ...children) {
  const held = () => [...place.querySelectorAll(REACHED)].filter((each) => each.checkVisibility());
  const old = document.activeElement, at = held().indexOf(old), { key } = old.dataset, caret = old.selectionStart;
  place.replaceChildren(...children.filter(Boolean));
  if (at < 0) return;
  const now = held(), same = now.find((each) => key && each.dataset.key === key);
  const next = same ?? now[Math.min(at, now.length - 1)] ?? place;
  if (next === place) place.tabIndex = -1;
  next.focus({ preventScroll: true });
  if (next.type === "text" && typeof caret === "number") next.setSelectionRange(caret, caret);
}

/** `value`, limited to the range from 0 to `most`. */
export const clamped = (value, most) => Math.max(0, Math.min(most, value));

/** The step [down, right] of an arrow key, whose scrolling is prevented; undefined for other keys. */
export function arrow(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (step) event.preventDefault();
  return step;
}

/** Mark the field in `place` whose name an error of the server begins with; returns whether there is one. */
export function blame(place, error) {
  const isWrong = (name) => Boolean(error?.match(new RegExp(`^expected (an? )?${name}\\b`)));
  const fields = [...place.querySelectorAll("[name]")];
  for (const each of fields) each.setAttribute("aria-invalid", String(isWrong(each.name)));
  return fields.some(({ name }) => isWrong(name));
}

/** A bar of [length, colour] pieces that is full at a total length of 1. */
export function meter(parts, label = "") {
  const pieces = parts.map(([share, colour]) => {
    const piece = h("i", { class: colour });
    piece.style.width = `${Math.min(100, 100 * share)}%`;
    return piece;
  });
  return h("span", { class: "meter", role: "img", "aria-label": label }, pieces);
}

const going = new Map(); // what aborts each request or pause of this view, by what that is for

/** A signal that aborts as soon as something else is begun for `what`, or the view is left. */
function begun(what) {
  const control = new AbortController();
  going.get(what)?.abort();
  going.set(what, control);
  return control.signal;
}

/** End all requests and pauses, as the view is left: nothing that waits for them ever goes on. */
export function leave() {
  for (const each of going.values()) each.abort();
  going.clear();
}

/** Wait for some milliseconds, and for ever if something else is begun for `what`. */
export function pause(milliseconds, what = Symbol()) {
  const signal = begun(what);
  return new Promise((resolve) => setTimeout(() => signal.aborted || resolve(), milliseconds));
}

/** The server's answer, as JSON; throws an Error with the server's message if it refuses. If something else is begun
 *  for `what`, this request is aborted and never answered, so that only the newest is ever painted. */
export async function ask(path, body, what = Symbol()) {
  const signal = begun(what), options = { signal, headers: {} };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = body instanceof Blob ? body.type : "application/json";
    options.body = body instanceof Blob ? body : JSON.stringify(body);
  }
  const response = await fetch(path, options).catch(() => null);
  const answer = await response?.json().catch(() => null);
  if (signal.aborted) return new Promise(() => {});
  if (response?.ok && answer) return answer;
  throw new Error(complaint(response?.status === 503 ? "the server is busy: try again in a few seconds"
    : answer?.error ?? "the server does not answer: is vgg app still running?"));
}

/** Show in `place` the parts that `work` resolves to, or its error. */
export const into = async (place, work) => repaint(place, ...await work.catch((error) => [failure(error.message)]));

/** Count the seconds in `place` until `work` has an answer; then show what `paint` makes of it, or the error. */
export async function counted(place, work, paint, words = (taken) => t("measuringFor", taken)) {
  const begin = Date.now(), told = h("p", { class: "panel", role: "status", tabindex: "-1" });
  const count = () => {
    told.textContent = words(Math.round((Date.now() - begin) / 1000));
    pause(1000, told).then(() => told.isConnected && count());
  };
  const refused = ({ message }) => [h("p", { class: "panel error", role: "alert" }, message)];
  count();
  repaint(place, told);
  const parts = await work.then(paint).catch(refused);
  if (place.contains(told)) repaint(place, ...parts);
}

export const whole = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });
export const share = (value) => (value > 0 && value < 0.0005 ? "< 0.1%" : `${(100 * value).toFixed(1)}%`);

/** A number from 1,000 with three digits and its unit; undefined below. */
function scaled(value, suffix = "") {
  const rounded = Number(value.toPrecision(3));
  const unit = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([size]) => rounded >= size);
  return unit && `${(rounded / unit[0]).toPrecision(3)} ${unit[1]}${suffix}`;
}

/** A number with three digits: 138 M, 15.5 G. */
export const short = (value) => scaled(value) ?? String(Math.round(value * 100) / 100);
export const bytes = (value) => scaled(value, "B") ?? `${value} B`;

export function seconds(value) {
  const minutes = Math.floor(value / 60);
  if (minutes < 1) return `${Math.round(value)} s`;
  if (minutes < 60) return `${minutes} min ${Math.round(value % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A table; each row is a list of cells, which are texts or elements. */
export function table(header, rows, { label = header[0], caption, foot } = {}) {
  const cells = (row) => h("tr", {}, row.map((value) => h("td", {}, value)));
  return region(label, h("table", {}, caption && h("caption", { class: "small muted left" }, caption),
    h("thead", {}, h("tr", {}, header.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map(cells)), foot && h("tfoot", {}, cells(foot))));
}
