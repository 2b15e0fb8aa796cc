// One map enlarged, with a place in it that is chosen by a click or by the arrow keys.

import { arrow, h } from "./dom.js";
import { t } from "./words.js";

/** `canvas` is the map; `taken` is told the place. */
export function enlarged(canvas, map, taken) {
  const { width, height } = canvas, place = { y: Math.floor(height / 2), x: Math.floor(width / 2) };
  const mark = h("i", { class: "mark-place" });
  Object.assign(mark.style, { width: `${100 / width}%`, height: `${100 / height}%` });
  const put = (y, x) => {
    place.y = Math.max(0, Math.min(height - 1, y));
    place.x = Math.max(0, Math.min(width - 1, x));
    mark.style.left = `${(100 * place.x) / width}%`;
    mark.style.top = `${(100 * place.y) / height}%`;
  };
  put(place.y, place.x);
  canvas.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    put(Math.floor(((event.clientY - box.top) / box.height) * height), Math.floor(((event.clientX - box.left) / box.width) * width));
    taken(place);
  });
  canvas.addEventListener("keydown", (event) => {
    const move = arrow(event);
    if (!move) return;
    put(place.y + move[0], place.x + move[1]);
    taken(place);
  });
  const facts = t("mapFacts", map.channel, map.mean.toPrecision(3), map.least.toPrecision(3), map.most.toPrecision(3));
  return { place, parts: [h("div", { class: "enlarged" }, canvas, mark), h("p", { class: "small muted" }, facts)] };
}
