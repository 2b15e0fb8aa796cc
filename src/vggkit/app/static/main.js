// The page: which view is shown, in which language; the address holds both the view and the design.

import { ask, h, seconds } from "./dom.js";
import { language, setLanguage, t } from "./words.js";
import { translated } from "./terms.js";
import { readAddress, writeAddress } from "./state.js";
import * as compare from "./compare.js";
import * as design from "./design.js";
import * as classify from "./classify.js";
import * as doctor from "./doctor.js";
import * as inside from "./inside.js";
import * as learn from "./learn.js";
import * as train from "./train.js";

const VIEWS = { design, doctor, train, classify, inside, compare, learn };

let close = null;
let shown = null;

function show() {
  const { view } = readAddress();
  const name = view in VIEWS ? view : "design";
  if (name === shown && VIEWS[name].update) return VIEWS[name].update();
  close?.();
  shown = name;
  const main = document.getElementById("view");
  main.replaceChildren();
  close = VIEWS[name].open(main) || null;
  document.title = `${t(name)} · vggkit`;
  document.getElementById("views").replaceChildren(...Object.keys(VIEWS).map((each) =>
    h("a", { href: `#/${each}`, "aria-current": each === name ? "page" : null, onclick: (event) => go(event, each) }, t(each))));
  document.querySelector("#views [aria-current]").scrollIntoView({ inline: "center", block: "nearest" });
}

/** Show what the address now says; a focus that went with the view of before is at the start of the new one. */
function moved() {
  show();
  if (document.activeElement === document.body) document.getElementById("view").focus();
}

function go(event, name) {
  event.preventDefault();
  writeAddress({ view: name }, true);
  moved();
}

async function foot() {
  const machine = await ask("/api/machine");
  const loaded = machine.torch_seconds === null ? t("torchLoading") : t("torchLoaded", seconds(machine.torch_seconds));
  document.getElementById("foot").textContent = [translated(machine.hardware), loaded].filter(Boolean).join(" · ");
  if (machine.macs_per_second === null) setTimeout(() => foot().catch(() => {}), 1000);
  else document.dispatchEvent(new CustomEvent("measured"));
}

function speak() {
  document.documentElement.lang = language() === "zh" ? "zh-Hans" : "en";
  document.getElementById("language").textContent = language() === "zh" ? "English" : "中文";
  document.getElementById("language").lang = language() === "zh" ? "en" : "zh-Hans";
  document.getElementById("skip").textContent = t("skip");
  document.getElementById("views").setAttribute("aria-label", t("views"));
  shown = null;
  show();
  foot().catch(() => {});
}

document.getElementById("language").addEventListener("click", () => { setLanguage(language() === "zh" ? "en" : "zh"); speak(); });
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); document.getElementById("view").focus(); });
addEventListener("hashchange", moved);
if (location.search) history.replaceState(null, "", location.pathname + location.hash); // the token has done its work
speak();
