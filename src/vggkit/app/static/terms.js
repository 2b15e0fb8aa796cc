// What the library says in English, in Chinese: a blank is any text, which is translated too.

import { FIELDS } from "./fields-zh.js";
import { TERMS } from "./terms-zh.js";
import { language, t } from "./words.js";

let patterns = null;

function compiled() {
  return Object.entries(TERMS).map(([english, chinese]) => {
    const blanks = [...english.matchAll(/\{(\w+)\}/g)].map((found) => found[1]);
    const body = english.split(/\{\w+\}/).map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("(.+?)");
    return [new RegExp(`^${body}$`, "s"), blanks, chinese];
  });
}

/** A line of the library in the page's language; what is not known stays as it is. */
export function translated(line) {
  if (language() !== "zh") return line;
  patterns ??= compiled();
  for (const [pattern, blanks, chinese] of patterns) {
    const found = line.match(pattern);
    if (found) return blanks.reduce((text, blank, index) => text.replaceAll(`{${blank}}`, () => translated(found[index + 1])), chinese);
  }
  return FIELDS[line]?.[0] ?? line;
}

/** An error of the library in the page's language; one without Chinese words is quoted whole, not half translated. */
export function complaint(line) {
  const said = translated(line);
  return language() === "zh" && /[a-z]+ [a-z]+ [a-z]+/.test(said) ? t("quoted", line) : said;
}

/** A field of a recipe: what it is called and its help, which the library gives in English. */
export function fieldWords(name, help) {
  return (language() === "zh" && FIELDS[name]) || [name.replaceAll("_", " "), help];
}
