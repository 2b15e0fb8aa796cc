// Elements, requests and numbers as the page writes them.

import { complaint } from "./terms.js";

/** An element: `on…` attributes are listeners, `class` and others are set, null and false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled" || name === "selected") element[name] = value;
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** An element of SVG. */
export function s(tag, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(9).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

const REACHED = "a[href], button:not(:disabled), input, select, summary, [tabindex]";

/** Replace what `place` holds. Whoever is in it by keyboard stays at the control with the same key, or at the one in its stead. */
export function repaint(place, ...children) {
  const held = () => [...place.querySelectorAll(REACHED)].filter((each) => each.checkVisibility());
  const old = document.activeElement, at = held().indexOf(old), key = old.dataset.key, caret = old.selectionStart;
  place.replaceChildren(...children);
  if (at < 0) return;
  const now = held(), next = now.find((each) => key && each.dataset.key === key) ?? now[Math.min(at, now.length - 1)] ?? place;
  if (next === place) place.tabIndex = -1;
  next.focus({ preventScroll: true });
  if (next.type === "text" && typeof caret === "number") next.setSelectionRange(caret, caret);
}

/** The step [down, right] of an arrow key, which then does not scroll; nothing for other keys. */
export function arrow(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (step) event.preventDefault();
  return step;
}

/** A bar that is full at 1; its length is said beside it, in words. */
export function meter(parts, label = "") {
  const pieces = parts.map(([share, colour]) => {
    const piece = h("i", { class: colour });
    piece.style.width = `${Math.min(100, 100 * share)}%`;
    return piece;
  });
  return h("span", { class: "meter", role: "img", "aria-label": label }, pieces);
}

/** The server's answer; what it refuses is an Error with its line. */
export async function ask(path, body, signal) {
  const options = { signal, headers: {} };
  if (body !== undefined) {
    options.method = "POST";
    options.headers["Content-Type"] = body instanceof Blob ? body.type : "application/json";
    options.body = body instanceof Blob ? body : JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(complaint("the server does not answer: is vgg app still running?"));
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(complaint(answer.error || response.statusText));
  return answer;
}

/** Show how long it takes to `work`, in `words`, then what `paint` makes of the answer, or the error. */
export async function counted(place, words, work, paint) {
  const begin = Date.now(), told = h("p", { class: "panel", role: "status", tabindex: "-1" });
  const count = () => { told.textContent = words(Math.round((Date.now() - begin) / 1000)); };
  count();
  const timer = setInterval(count, 1000);
  repaint(place, told);
  try {
    const answer = await work();
    if (place.contains(told)) repaint(place, ...paint(answer));
  } catch (error) {
    if (place.contains(told)) repaint(place, h("p", { class: "panel error", role: "alert" }, error.message));
  } finally {
    clearInterval(timer);
  }
}

export const whole = (value) => value.toLocaleString("en-US", { maximumFractionDigits: 0 });
export const share = (value) => (value > 0 && value < 0.0005 ? "< 0.1%" : `${(100 * value).toFixed(1)}%`);

/** A number of many digits with three of them: 138 M, 15.5 G. */
export function short(value) {
  for (const [unit, name] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (value >= unit) return `${(value / unit).toPrecision(3)} ${name}`;
  }
  return String(Math.round(value * 100) / 100);
}

export function bytes(value) {
  for (const [unit, name] of [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= unit) return `${(value / unit).toPrecision(3)} ${name}`;
  }
  return `${value} B`;
}

export function seconds(value) {
  const minutes = Math.floor(value / 60);
  if (minutes < 1) return `${Math.round(value)} s`;
  if (minutes < 60) return `${minutes} min ${Math.round(value % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A table with a header; each row is a list of cells, texts or elements. */
export function table(header, rows, options = {}) {
  const cell = (tag) => (value) => h(tag, tag === "th" ? { scope: "col" } : {}, value);
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": options.label || header[0] },
    h("table", {}, options.caption ? h("caption", { class: "small muted left" }, options.caption) : null,
      h("thead", {}, h("tr", {}, header.map(cell("th")))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map(cell("td"))))),
      options.foot ? h("tfoot", {}, h("tr", {}, options.foot.map(cell("td")))) : null));
}

/** A labelled field; `choices` make it a list. `onchange` is told the value. */
export function field(label, value, options = {}) {
  const { choices, type = "text", oninput, help, ...rest } = options;
  const change = (event) => oninput?.(type === "checkbox" ? event.target.checked : event.target.value);
  if (type === "checkbox") return h("label", { class: "check", title: help }, h("input", { type, checked: Boolean(value), onchange: change, ...rest }), label);
  const input = choices
    ? h("select", { onchange: change, ...rest }, choices.map((choice) => {
      const [key, name] = Array.isArray(choice) ? choice : [choice, choice];
      return h("option", { value: key, selected: String(key) === String(value) }, name);
    }))
    : h("input", { type, value: value ?? "", oninput: change, autocomplete: "off", spellcheck: "false", ...rest });
  return h("label", { title: help }, label, input);
}
