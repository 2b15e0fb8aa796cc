// Where images come from: dropped, pasted, chosen, drawn, taken by camera, or a test image of the run.

import { arrow, ask, h } from "./dom.js";
import { t } from "./words.js";

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"];
let current = null; // the image that was sent last: kept while views change

/** A panel to bring an image; `told` gets what the server knows it as. */
export function picker(runOf, told) {
  const error = h("p", { class: "error", role: "alert" });
  const preview = h("div", { class: "preview" });
  const extra = h("div", { onkeydown: (event) => event.key === "Escape" && shut() });
  let index = 0, camera = null, opener = null;

  const take = async (work) => {
    error.textContent = "";
    try {
      current = await work();
      paint();
      told(current);
    } catch (found) {
      error.textContent = found.message;
    }
  };
  const send = (file) => take(async () => {
    if (!TYPES.includes(file.type)) throw new Error(t("notAnImage", file.type || file.name));
    if (file.size > 20e6) throw new Error(t("tooLarge"));
    return ask("/api/images", file);
  });
  const paint = () => preview.replaceChildren(...(current ? [h("img", { src: current.preview, alt: t("yourImage"), class: Math.max(current.width, current.height) < 100 ? "pixels" : "" }), h("small", { class: "muted" }, `${current.width} × ${current.height}`)] : []));

  const input = h("input", { type: "file", accept: TYPES.join(","), class: "visually-hidden", id: "file", tabindex: "-1", "aria-label": t("chooseFile"), onchange: (event) => event.target.files[0] && send(event.target.files[0]) });
  const drop = h("div", {
    class: "drop",
    ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
    ondragleave: () => drop.classList.remove("over"),
    ondrop: (event) => { event.preventDefault(); drop.classList.remove("over"); if (event.dataTransfer.files[0]) send(event.dataTransfer.files[0]); },
  }, preview, h("p", {}, t("dropHere")), h("div", { class: "row centre" },
    input, h("button", { type: "button", onclick: () => input.click() }, t("chooseFile")),
    h("button", { type: "button", onclick: () => take(() => ask("/api/sample", { run: runOf(), index: index++ })) }, t("testImage")),
    h("button", { type: "button", onclick: draw }, t("drawOne")),
    navigator.mediaDevices ? h("button", { type: "button", onclick: film }, t("camera")) : ""));

  function draw(event) {
    stop();
    opener = event.currentTarget;
    const canvas = h("canvas", { width: 28, height: 28, class: "pixels sketch", tabindex: "0", role: "application", "aria-label": t("canvas") });
    const pen = canvas.getContext("2d");
    pen.fillRect(0, 0, 28, 28);
    const at = (event) => { const box = canvas.getBoundingClientRect(); return [((event.clientX - box.left) / box.width) * 28, ((event.clientY - box.top) / box.height) * 28]; };
    Object.assign(pen, { strokeStyle: "#fff", lineWidth: 3, lineCap: "round", lineJoin: "round" });
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); pen.beginPath(); pen.moveTo(...at(event)); pen.lineTo(...at(event)); pen.stroke(); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) { pen.lineTo(...at(event)); pen.stroke(); } });
    const done = () => canvas.toBlob((blob) => send(blob), "image/png");
    canvas.addEventListener("pointerup", done);
    const place = [14, 14], where = h("p", { class: "small muted", "aria-live": "polite" }, t("penUp", 14, 14));
    let isDown = false;
    canvas.addEventListener("keydown", (event) => {
      const move = event.key === " " ? [0, 0] : arrow(event);
      if (!move) return;
      event.preventDefault();
      if (event.key === " ") isDown = !isDown;
      pen.beginPath();
      pen.moveTo(...place);
      place.forEach((at, axis) => { place[axis] = Math.max(0, Math.min(27, at + move[1 - axis])); });
      pen.lineTo(...place);
      if (isDown) pen.stroke();
      where.textContent = t(isDown ? "penDown" : "penUp", ...place);
    });
    canvas.addEventListener("keyup", (event) => isDown && event.key.startsWith("Arrow") && done());
    extra.replaceChildren(h("p", { class: "small muted" }, t("drawHelp")), canvas, where, h("div", { class: "row centre" }, h("button", { type: "button", onclick: () => pen.fillRect(0, 0, 28, 28) }, t("clear")), h("button", { type: "button", onclick: shut }, t("close"))));
    canvas.focus();
  }

  async function film(event) {
    stop();
    opener = event.currentTarget;
    try {
      camera = await navigator.mediaDevices.getUserMedia({ video: true });
    } catch {
      error.textContent = t("noCamera");
      return;
    }
    const video = h("video", { autoplay: true, playsinline: true, class: "sketch" });
    video.srcObject = camera;
    const shoot = () => {
      const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => { shut(); send(blob); }, "image/jpeg", 0.95);
    };
    extra.replaceChildren(video, h("div", { class: "row centre" }, h("button", { type: "button", class: "primary", onclick: shoot }, t("shoot")), h("button", { type: "button", onclick: shut }, t("close"))));
  }

  function stop() {
    for (const track of camera?.getTracks() ?? []) track.stop();
    camera = null;
    extra.replaceChildren();
  }

  /** Closed by hand: on with the button that opened it. */
  function shut() {
    stop();
    opener.focus();
  }

  const pasted = (event) => { const file = [...event.clipboardData.files][0]; if (file) send(file); };
  document.addEventListener("paste", pasted);
  paint();
  return { element: h("div", { class: "stack" }, drop, extra, error), current: () => current, close: () => { stop(); document.removeEventListener("paste", pasted); } };
}

/** A list of the runs and weight files that can be looked at; the address holds the choice. */
export async function modelList(chosen, told) {
  const { runs, datasets } = await ask("/api/runs");
  const names = runs.filter((run) => run.has_weights).map((run) => run.name);
  const name = names.includes(chosen) ? chosen : names[0];
  const select = h("select", { name: "model", onchange: (event) => told(event.target.value) }, names.map((each) => h("option", { value: each, selected: each === name }, each)));
  return { name, datasets, element: names.length ? h("label", {}, t("model"), select) : h("p", { class: "muted" }, t("noModels")) };
}
