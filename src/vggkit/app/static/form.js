// The fields of a recipe, in groups, with their help; those that differ from the named recipe are marked.

import { h, options } from "./dom.js";
import { number, numbers } from "./state.js";
import { fieldWords } from "./terms.js";
import { t } from "./words.js";

const LONG = new Set(["data", "architecture", "warm_start", "pretrained", "continues"]); // need the whole width
const open = new Set(["data", "network", "optimization"]); // groups, as the person has left them

/** The groups of a form that edits `recipe`, and the helps, of which one is shown; `named` is compared with. */
export function recipeForm(fields, recipe, named, choices, changed) {
  const differs = (name) => JSON.stringify(recipe[name]) !== JSON.stringify(named[name]), helps = fields.map(help);
  /** Show the help of the field in use. Also on change: in Safari a clicked checkbox gets no focus. */
  const explain = ({ target }) => {
    for (const each of helps) each.hidden = each.id !== target.getAttribute("aria-describedby");
  };
  const groups = [...Map.groupBy(fields, (each) => each.group)].map(([group, members]) => {
    const badge = h("span", { class: "badge" });
    const count = () => {
      const differing = members.filter(({ name }) => differs(name)).length;
      badge.hidden = !differing;
      badge.textContent = t("changedFields", differing);
    };
    const kept = ({ target }) => (target.open ? open.add(group) : open.delete(group));
    const edited = () => { count(); changed(); };
    count();
    return h("details", { open: open.has(group), ontoggle: kept },
      h("summary", {}, t(`group ${group}`), " ", badge),
      h("div", { class: "fields", onfocusin: explain, onchange: explain }, members.map((each) => input(each, edited))));
  });
  return [groups, helps];

  function input({ name, kind, choices: own, help: about }, edited) {
    const [words, told] = fieldWords(name, about), value = recipe[name];
    const shared = { name, "aria-describedby": `help-${name}` };
    const set = (made) => {
      recipe[name] = made;
      label.classList.toggle("changed", differs(name));
      edited();
    };
    const list = own ?? choices[name], isFlag = kind === "flag", text = kind === "numbers" ? value.join(" ") : value;
    const typed = () => set(read(control.value, kind));
    const control = isFlag
      ? h("input", { type: "checkbox", checked: value, onchange: () => set(control.checked), ...shared })
      : list ? h("select", { onchange: () => set(control.value), ...shared }, options(list, value, t("none")))
        : h("input", { value: text, spellcheck: "false", autocomplete: "off", oninput: typed, ...shared });
    const called = h("span", {}, words);
    const label = h("label", { title: told }, ...(isFlag ? [control, called] : [called, control]));
    label.classList.toggle("check", isFlag);
    label.classList.toggle("wide", LONG.has(name));
    label.classList.toggle("changed", differs(name));
    return label;
  }
}

const help = ({ name, help: about }) => h("p", { id: `help-${name}`, hidden: true }, fieldWords(name, about)[1]);

function read(text, kind) {
  if (kind === "numbers") return numbers(text);
  return kind === "whole" || kind === "number" ? (text.trim() === "" ? null : number(text)) : text;
}
