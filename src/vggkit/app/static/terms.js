// The library's English messages in Chinese; a blank is any text, which is translated too.

import { FIELDS } from "./fields-zh.js";
import { TERMS } from "./terms-zh.js";
import { WORDS } from "./texts.js";
import { language, t } from "./words.js";

let patterns = null;

function compiled() {
  return Object.entries(TERMS).map(([english, chinese]) => {
    const blanks = [...english.matchAll(/\{(\w+)\}/g)].map((found) => found[1]);
    const body = english.split(/\{\w+\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("(.+?)");
    return [new RegExp(`^${body}$`, "s"), blanks, chinese];
  });
}

/** A message of the library in the page's language; an unknown one stays as it is. */
export function translated(line) {
  if (language() !== "zh") return line;
  patterns ??= compiled();
  for (const [pattern, blanks, chinese] of patterns) {
    const found = line.match(pattern);
    const filled = (text, blank, at) => text.replaceAll(`{${blank}}`, () => translated(found[at + 1]));
    if (found) return blanks.reduce(filled, chinese);
  }
  return FIELDS[line]?.[0] ?? line;
}

/** An error of the library in the page's language; one that is not fully translated is quoted in English. */
export function complaint(line) {
  const said = translated(line);
  return language() === "zh" && /[a-z]+ [a-z]+ [a-z]+/.test(said) ? t("quoted", line) : said;
}

/** The name and the help of a field of a recipe; `help` is the library's, in English. */
export function fieldWords(name, help) {
  return (language() === "zh" && FIELDS[name]) || [name[0].toUpperCase() + name.slice(1).replaceAll("_", " "), help];
}

/** The label of a field of a design or of a recipe. */
export const label = (name) => (name in WORDS ? t(name) : fieldWords(name)[0]);
