// Every text of the page, in English and Chinese; {0} is a value.

import { WORDS } from "./texts.js";

const KEY = "vggkit-language";
let chosen = null;

export function language() {
  if (chosen === null) {
    try { chosen = localStorage.getItem(KEY); } catch { /* a browser that keeps nothing */ }
    chosen ??= navigator.language.startsWith("zh") ? "zh" : "en";
  }
  return chosen;
}

export function setLanguage(name) {
  chosen = name;
  try { localStorage.setItem(KEY, name); } catch { /* it holds until the page is closed */ }
}

export function t(key, ...values) {
  const [english, chinese] = WORDS[key] ?? [key, key];
  return (language() === "zh" ? chinese : english).replace(/\{(\d)\}/g, (_, index) => values[index]);
}
