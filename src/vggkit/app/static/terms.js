// The library's English messages in Chinese; a blank is any text, which is translated too.

import { FIELDS } from "./fields-zh.js";
import { TERMS } from "./terms-zh.js";
import { WORDS } from "./texts.js";
import { language, t } from "./words.js";

/** What fields are called whose names say little by themselves. */
const LABELS = {
  init: "Initial weights", hidden: "Hidden layer widths", holdout: "Held-out share", validation: "Validation images",
  stream: "Read as a stream", epoch_images: "Images in an epoch", average: "Weight averaging",
  continues: "Continue from run", warm_start: "Warm start from run", pretrained: "Pretrained weights",
  head_epochs: "Last layer's epochs", flip: "Random mirroring", translate: "Random shift, pixels",
  erase: "Erased side, pixels", test_flip: "Mirrored evaluation",
};
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
  const said = inWords(translated(line));
  return language() === "zh" && /[a-z]+ [a-z]+ [a-z]+/.test(said) ? t("quoted", line) : said;
}

/** A line of the library with the page's own words for flags and for names of fields: image size, not image_size. */
export function inWords(line) {
  const named = line.replace(" --warm-start RUN, a run of", " and a warm start from a run of");
  return named.replace(/--([a-z-]*[a-z])|[a-z]+(_[a-z]+)+/g, (found, flag) => {
    const name = (flag ?? found).replaceAll("-", "_");
    return name in FIELDS || (name in WORDS && !flag) ? inSentence(name) : found;
  });
}

/** The name of a field within a sentence. */
export function inSentence(name) {
  return language() === "zh" ? label(name) : (LABELS[name] ?? name.replaceAll("_", " ")).toLowerCase();
}

/** The name and the help of a field of a recipe; `help` is the library's, in English. */
export function fieldWords(name, help) {
  const words = LABELS[name] ?? name[0].toUpperCase() + name.slice(1).replaceAll("_", " ");
  return (language() === "zh" && FIELDS[name]) || [words, help];
}

/** The label of a field of a design or of a recipe. */
export const label = (name) => (name in WORDS ? t(name) : fieldWords(name)[0]);
