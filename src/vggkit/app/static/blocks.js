// The blocks of a design as cards: typed into, dragged, moved by keys, removed.

import { arrow, button, droppable, h, repaint } from "./dom.js";
import { t } from "./words.js";

/** The fields of a block, and the name of each in the texts. */
const FIELDS = Object.entries({ num_convs: "convolutions", channels: "channels", kernels: "kernels" });
const sizes = (kernels) => String(new Set(kernels).size === 1 ? kernels[0] : kernels);

/** A block in the notation. */
export function written({ num_convs, channels, kernels, lrn }) {
  return `${num_convs}x${channels}${sizes(kernels) === "3" ? "" : `k${sizes(kernels)}`}${lrn ? "+lrn" : ""}`;
}

/** Cards in `list`; `edit` gets each change, as a function of the blocks. Returns what shows blocks in the cards. */
export function blockCards(list, edit) {
  const names = ["", ...FIELDS.map(([, name]) => t(name)), ""].map((name) => h("span", {}, name));
  const head = h("li", { class: "block-names small muted", "aria-hidden": "true" }, names);
  let cards = [];
  return (blocks) => {
    const isOther = blocks.length !== cards.length; // cards that stay keep what is typed into them, and their focus
    if (isOther) cards = blocks.map((_, index) => card(list, index, edit));
    cards.forEach(({ put }, index) => put(blocks[index], blocks.length));
    if (isOther) repaint(list, head, ...cards.map(({ element }) => element));
  };
}

function card(list, index, edit) {
  function moved(from, to) {
    const [held, grip] = [from, to].map((at) => list.querySelector(`[data-key="grip-${at}"]`));
    if (!held || !grip || held === grip) return;
    edit((blocks) => (blocks[from] ? blocks.toSpliced(from, 1).toSpliced(to, 0, blocks[from]) : blocks));
    grip.focus();
  }

  const inputs = FIELDS.map(([field, name]) => {
    const changed = ({ target }) => {
      const text = target.value.trim(), value = field === "kernels" ? text.split(/[ ,]+/).filter(Boolean) : text;
      edit((blocks) => blocks.map((block, at) => (at === index ? { ...block, [field]: value } : block)));
    };
    return h("input", {
      type: field === "kernels" ? "text" : "number", min: 1, "data-key": `${name}-${index}`,
      "aria-label": `${t("block", index + 1)}, ${t(name)}`, onchange: changed,
    });
  });
  const words = t("moveBlock", index + 1), removal = t("removeBlock", index + 1);
  const byKey = (event) => {
    const step = arrow(event);
    if (step) moved(index, index + step[0] + step[1]);
  };
  const remove = button("×", () => edit((blocks) => blocks.toSpliced(index, 1)), {
    class: "icon quiet", "aria-label": removal, title: removal,
  });
  const element = h("li", {
    class: "block", draggable: "true", ...droppable((data) => moved(Number(data.getData("text/plain")), index)),
    ondragstart: (event) => event.dataTransfer.setData("text/plain", String(index)),
  },
  button("⠿", null, {
    class: "icon grip", "data-key": `grip-${index}`, "aria-label": words, title: words, onkeydown: byKey,
  }), inputs, remove);

  /** Show a block; a field whose value is as before keeps what is being typed into it. */
  function put(block, count) {
    remove.disabled = count === 1;
    FIELDS.forEach(([field], at) => {
      const input = inputs[at], value = field === "kernels" ? sizes(block[field]) : String(block[field]);
      if (input.defaultValue !== value) input.defaultValue = input.value = value;
    });
  }
  return { element, put };
}
