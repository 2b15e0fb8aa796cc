// The page: shows the view that the address names, in the chosen language.

import { ask, h, leave, pause, seconds } from "./dom.js";
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
const [main, views, skip, toggle, footer] = ["view", "views", "skip", "language", "foot"]
  .map((id) => document.getElementById(id));
let close = null;

function show() {
  const { view } = readAddress();
  const shown = Object.hasOwn(VIEWS, view) ? view : "design";
  close?.();
  leave();
  main.replaceChildren(h("h1", {}, t(`${shown}Title`)), h("p", { class: "lead" }, t(`${shown}Lead`)));
  close = VIEWS[shown].open(main);
  document.title = `${t(shown)} · vggkit`;
  views.replaceChildren(...Object.keys(VIEWS).map((name) => h("a", {
    href: `#/${name}`, "aria-current": name === shown ? "page" : null, onclick: (event) => go(event, name),
  }, t(name))));
  views.querySelector("[aria-current]").scrollIntoView({ inline: "center", block: "nearest" });
  foot().catch(() => {});
}

/** Show the view that the address now names, from its top; a focus that was in the old view moves to the new one. */
function moved() {
  show();
  scrollTo(0, 0);
  if (document.activeElement === document.body) main.focus({ preventScroll: true });
}

function go(event, view) {
  event.preventDefault();
  writeAddress({ view }, true);
  moved();
}

async function foot() {
  const machine = await ask("/api/machine");
  const loaded = machine.torch_seconds === null ? t("torchLoading") : t("torchLoaded", seconds(machine.torch_seconds));
  footer.textContent = [translated(machine.hardware), loaded].filter(Boolean).join(" · ");
  if (machine.macs_per_second === null) {
    await pause(1000);
    await foot();
  } else document.dispatchEvent(new CustomEvent("measured"));
}

function speak() {
  const isChinese = language() === "zh", tags = ["en", "zh-Hans"];
  [document.documentElement.lang, toggle.lang] = isChinese ? tags.toReversed() : tags;
  toggle.textContent = isChinese ? "English" : "中文";
  skip.textContent = t("skip");
  views.setAttribute("aria-label", t("views"));
  show();
}

toggle.addEventListener("click", () => { setLanguage(language() === "zh" ? "en" : "zh"); speak(); });
skip.addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
addEventListener("hashchange", moved);
if (location.search) history.replaceState(null, "", location.pathname + location.hash); // without the token
speak();
