// The blocks of a design as cards: typed into, dragged, moved by keys, removed.

import { arrow, button, droppable, h, repaint } from "./dom.js";
import { t } from "./words.js";

/** Paint the cards of `blocks` into `list`; `set` gets the blocks after each change. */
export function blockCards(list, blocks, set) {
  const names = ["", t("convolutions"), t("channels"), t("kernels"), ""].map((name) => h("span", {}, name));
  repaint(list, h("li", { class: "block-names small muted", "aria-hidden": "true" }, names),
    ...blocks.map((_, index) => card(list, blocks, index, set)));
}

function card(list, blocks, index, set) {
  const block = blocks[index], isUniform = new Set(block.kernels).size === 1;
  const changed = (values) => set(blocks.with(index, { ...block, ...values }));

  function moved(from, to) {
    if (!blocks[from] || !blocks[to] || to === from) return;
    const grip = list.querySelector(`[data-key="grip-${to}"]`);
    set(blocks.toSpliced(from, 1).toSpliced(to, 0, blocks[from]));
    grip.focus();
  }

  const input = (name, value, made, rest) => h("input", {
    type: "text", value, "data-key": `${name}-${index}`, "aria-label": `${t("block", index + 1)}, ${t(name)}`,
    onchange: (event) => changed(made(event.target.value.trim())), ...rest,
  });
  const number = (name, value, made) => input(name, value, made, { type: "number", min: 1 });
  const convolved = (text) => ({
    num_convs: text, kernels: isUniform ? Array(Number(text) || 1).fill(block.kernels[0]) : block.kernels,
  });
  const words = t("moveBlock", index + 1), removal = t("removeBlock", index + 1);
  const byKey = (event) => {
    const step = arrow(event);
    if (step) moved(index, index + step[0] + step[1]);
  };
  return h("li", {
    class: "block", draggable: "true", ...droppable((data) => moved(Number(data.getData("text/plain")), index)),
    ondragstart: (event) => event.dataTransfer.setData("text/plain", String(index)),
  },
  button("⠿", null, {
    class: "icon grip", "data-key": `grip-${index}`, "aria-label": words, title: words, onkeydown: byKey,
  }),
  number("convolutions", block.num_convs, convolved),
  number("channels", block.channels, (text) => ({ channels: text })),
  input("kernels", isUniform ? block.kernels[0] : block.kernels.join(","),
    (text) => ({ kernels: text.split(/[ ,]+/).filter(Boolean).map(Number) })),
  button("×", () => set(blocks.toSpliced(index, 1)), {
    class: "icon quiet", "aria-label": removal, title: removal, disabled: blocks.length === 1,
  }));
}
