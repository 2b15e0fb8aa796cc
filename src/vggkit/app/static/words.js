// Every text of the page, in English and Chinese; {0} is a value.

import { WORDS } from "./texts.js";

const KEY = "vggkit-language";

export const language = () => localStorage.getItem(KEY) ?? (navigator.language.startsWith("zh") ? "zh" : "en");
export const setLanguage = (name) => localStorage.setItem(KEY, name);

export function t(key, ...values) {
  const [english, chinese] = WORDS[key] ?? [key, key];
  return (language() === "zh" ? chinese : english).replace(/\{(\d)\}/g, (_, index) => values[index]);
}
