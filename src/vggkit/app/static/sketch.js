// A canvas of 28 x 28 pixels, drawn on by a pointer or by keys.

import { arrow, clamped, h } from "./dom.js";
import { t } from "./words.js";

const SIDE = 28;

/** `done` gets the canvas after each stroke. */
export function sketch(done) {
  const place = [SIDE / 2, SIDE / 2];
  const where = h("p", { class: "small muted", "aria-live": "polite" }, t("penUp", ...place));
  const canvas = h("canvas", {
    width: SIDE, height: SIDE, class: "pixels sketch", tabindex: "0", role: "application", "aria-label": t("canvas"),
    onpointerdown: begin, onpointermove: (event) => event.buttons && pointed(event), onpointerup: () => done(canvas),
    onkeydown: keyed, onkeyup: (event) => isDown && event.key.startsWith("Arrow") && done(canvas),
  });
  const pen = canvas.getContext("2d"), clear = () => pen.fillRect(0, 0, SIDE, SIDE);
  let isDown = false;
  clear();
  Object.assign(pen, { strokeStyle: "#fff", lineWidth: 3, lineCap: "round", lineJoin: "round" });

  const to = (x, y) => { pen.lineTo(x, y); pen.stroke(); };

  function pointed(event) {
    const box = canvas.getBoundingClientRect();
    to((event.clientX - box.left) / box.width * SIDE, (event.clientY - box.top) / box.height * SIDE);
  }

  function begin(event) {
    canvas.setPointerCapture(event.pointerId);
    pen.beginPath();
    pointed(event);
    pointed(event); // a dot
  }

  function keyed(event) {
    const move = event.key === " " ? [0, 0] : arrow(event);
    if (!move) return;
    event.preventDefault();
    if (event.key === " ") isDown = !isDown;
    pen.beginPath();
    pen.moveTo(...place);
    place.forEach((at, axis) => { place[axis] = clamped(at + move[1 - axis], SIDE - 1); });
    if (isDown) to(...place);
    where.textContent = t(isDown ? "penDown" : "penUp", ...place);
  }
  return { canvas, where, clear };
}
