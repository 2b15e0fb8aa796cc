// The blocks of a design as cards: typed into, dragged, moved by keys, removed.

import { arrow, h, repaint } from "./dom.js";
import { t } from "./words.js";

/** Paint the cards of `blocks` into `list`; `set` is told the blocks after each change. */
export function blockCards(list, blocks, set) {
  const names = h("li", { class: "block-names small muted", "aria-hidden": "true" }, h("span"), h("span", {}, t("convolutions")), h("span", {}, t("channels")), h("span", {}, t("kernels")), h("span"));
  repaint(list, names, ...blocks.map((block, index) => card(block, index, blocks, set)));
}

function card(block, index, blocks, set) {
  const changed = (values) => set(blocks.map((each, other) => (other === index ? { ...each, ...values } : each)));
  const moved = (to) => {
    if (to < 0 || to >= blocks.length || to === index) return;
    const rest = blocks.filter((_, other) => other !== index);
    const grip = list.querySelector(`[data-key="grip-${to}"]`);
    set([...rest.slice(0, to), block, ...rest.slice(to)]);
    grip?.focus();
  };
  const number = (name, label, made) => h("input", {
    type: "text", inputmode: "numeric", value: block[name], "data-key": `${name}-${index}`, "aria-label": `${t("block", index + 1)}, ${label}`,
    onchange: (event) => changed(made(event.target.value.trim())),
    onkeydown: (event) => {
      const by = { ArrowUp: 1, ArrowDown: -1 }[event.key];
      if (!by) return;
      event.preventDefault();
      const value = name === "channels" ? (by > 0 ? 2 * block.channels : Math.max(1, Math.floor(block.channels / 2))) : Math.max(1, block.num_convs + by);
      changed(made(String(value)));
    },
  });
  const kernelsOf = (count) => (new Set(block.kernels).size === 1 ? Array(Number(count) || 1).fill(block.kernels[0]) : block.kernels);
  const grip = h("button", {
    type: "button", class: "icon grip", "data-key": `grip-${index}`, "aria-label": t("moveBlock", index + 1), title: t("moveBlock", index + 1),
    onkeydown: (event) => {
      const step = arrow(event);
      if (step) moved(index + step[0] + step[1]);
    },
  }, "⠿");
  const same = new Set(block.kernels).size === 1;
  const item = h("li", {
    class: "block", draggable: "true",
    ondragstart: (event) => event.dataTransfer.setData("text/plain", String(index)),
    ondragover: (event) => { event.preventDefault(); item.classList.add("over"); },
    ondragleave: () => item.classList.remove("over"),
    ondrop: (event) => {
      event.preventDefault();
      const from = Number(event.dataTransfer.getData("text/plain"));
      const rest = blocks.filter((_, other) => other !== from);
      if (blocks[from]) set([...rest.slice(0, index), blocks[from], ...rest.slice(index)]);
    },
  },
  grip,
  number("num_convs", t("convolutions"), (text) => ({ num_convs: text, kernels: kernelsOf(text) })),
  number("channels", t("channels"), (text) => ({ channels: text })),
  h("input", {
    type: "text", value: same ? block.kernels[0] : block.kernels.join(","), "data-key": `kernels-${index}`, "aria-label": `${t("block", index + 1)}, ${t("kernels")}`,
    onchange: (event) => changed({ kernels: event.target.value.split(/[ ,]+/).filter(Boolean).map(Number) }),
  }),
  h("button", { type: "button", class: "icon quiet", "aria-label": t("removeBlock", index + 1), title: t("removeBlock", index + 1), disabled: blocks.length === 1, onclick: () => set(blocks.filter((_, other) => other !== index)) }, "×"));
  const list = { querySelector: (selector) => item.parentElement?.querySelector(selector) };
  return item;
}
