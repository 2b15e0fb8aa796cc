// The fields of a recipe, grouped, with their help; what differs from the named recipe is marked.

import { h } from "./dom.js";
import { fieldWords } from "./terms.js";
import { t } from "./words.js";

const OPEN = ["data", "network", "optimization"];
const LONG = new Set(["data", "architecture", "warm_start", "pretrained", "continues"]); // whose values need the whole width

/** A form for `recipe`, which it changes; `named` is the recipe that it is compared with. */
export function recipeForm(fields, recipe, named, choices, changed) {
  const groups = new Map();
  for (const each of fields) groups.set(each.group, [...(groups.get(each.group) ?? []), each]);
  return [...groups].map(([group, members]) => {
    const differing = members.filter((each) => differs(each.name)).length;
    return h("details", { open: OPEN.includes(group) },
      h("summary", {}, t(`group ${group}`), differing ? h("span", { class: "badge" }, t("changedFields", differing)) : ""),
      h("div", { class: "fields" }, members.map(input)));
  });

  function differs(name) {
    return JSON.stringify(recipe[name]) !== JSON.stringify(named[name]);
  }

  function input({ name, kind, choices: own, help }) {
    const options = own ?? choices[name];
    const set = (value) => {
      recipe[name] = value;
      label.classList.toggle("changed", differs(name));
      changed();
    };
    const read = (text) => {
      if (kind === "numbers") return text.split(/[ ,]+/).filter(Boolean).map(Number);
      return kind === "whole" || kind === "number" ? (text.trim() === "" ? null : Number(text)) : text;
    };
    const [words, about] = fieldWords(name, help);
    const control = kind === "flag" ? h("input", { type: "checkbox", name, checked: recipe[name], onchange: (event) => set(event.target.checked) })
      : options ? h("select", { name, onchange: (event) => set(event.target.value) }, options.map((value) => h("option", { value, selected: value === recipe[name] }, value || t("none"))))
        : h("input", { name, value: kind === "numbers" ? recipe[name].join(" ") : recipe[name], spellcheck: "false", autocomplete: "off", oninput: (event) => set(read(event.target.value)) });
    const label = h("label", { class: `${kind === "flag" ? "check" : ""} ${LONG.has(name) ? "wide" : ""} ${differs(name) ? "changed" : ""}`, title: about }, ...(kind === "flag" ? [control, h("span", {}, words)] : [h("span", {}, words), control]));
    return label;
  }
}
