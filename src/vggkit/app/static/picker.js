// Brings an image: dropped, pasted, chosen, drawn, taken by camera, or a test image of the run.

import { ask, button, droppable, failure, field, h, into } from "./dom.js";
import { sketch } from "./sketch.js";
import { readAddress, writeAddress } from "./state.js";
import { complaint } from "./terms.js";
import { t } from "./words.js";

const TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp", "image/tiff"];
const MOST_BYTES = 20_000_000;
let current = null; // the image in use, which stays when the view changes
let index = 0; // of the test image that comes next

/** A panel to bring an image; `told` gets what the server knows of it, and the name of the run. */
export function picker(told) {
  const error = failure(""), preview = h("div", { class: "preview" });
  const extra = h("div", { onkeydown: (event) => event.key === "Escape" && shut() });
  let run = null, opener = null;

  const use = (image) => { current = image; paint(); if (run) told(image ?? {}, run); };

  /** Use the image that `work` brings; if it brings none, the one before goes too. A new source closes an open pad. */
  async function take(work, isDrawn = false) {
    if (!isDrawn) stop();
    error.textContent = "";
    try {
      use(await work());
    } catch (found) {
      use(null);
      error.textContent = found.message;
    }
  }

  const send = (file, isDrawn) => take(() => {
    const expected = "expected a PNG, JPEG, WebP, GIF, BMP or TIFF image, got";
    if (!TYPES.includes(file.type)) throw new Error(complaint(`${expected} ${file.type || file.name}`));
    if (file.size > MOST_BYTES) throw new Error(complaint("expected at most 20,000,000 bytes, got more"));
    return ask("/api/images", file, "image");
  }, isDrawn);
  const sample = async () => {
    const name = run, found = await ask("/api/sample", { run, index: index++ }, "image");
    return run === name ? { ...found, isTest: true } : current;
  };

  /** Switch to a run. Without an image of the person's own, show the run's first test image, if there is one. */
  async function begin(name) {
    const before = current, isOwn = before && !before.firstOf;
    run = name;
    if (!isOwn && before?.firstOf !== run) {
      const found = await ask("/api/first", { run }, "first").catch(() => ({}));
      if (run !== name) return;
      index = 1;
      if (found.image && current === before) current = { ...found, firstOf: run, isTest: true };
    }
    if (current) use(current);
  }

  function paint() {
    if (!current) return preview.replaceChildren();
    const { preview: src, width, height, isTest } = current, words = t(isTest ? "aTestImage" : "yourImage");
    preview.replaceChildren(
      h("img", { src, alt: words, class: Math.max(width, height) < 100 ? "pixels" : "" }),
      h("small", { class: "muted" }, `${words}, ${width} × ${height}`));
  }

  const input = h("input", {
    type: "file", accept: TYPES.join(","), class: "visually-hidden", id: "file", tabindex: "-1",
    "aria-label": t("chooseFile"), onchange: () => received(input),
  });
  const received = ({ files: [file] }) => file && run && send(file);
  const drop = h("div", { class: "drop", ...droppable(received) }, preview, extra, error, h("p", {}, t("dropHere")),
    h("div", { class: "row centre" }, input, button(t("chooseFile"), () => input.click()),
      button(t("testImage"), () => void take(sample)), button(t("drawOne"), draw),
      navigator.mediaDevices && button(t("camera"), film)));

  function draw(event) {
    stop();
    opener = event.currentTarget;
    const { canvas, where, clear } = sketch((drawn) => drawn.toBlob((file) => send(file, true), "image/png"));
    preview.hidden = true; // which would show the drawing again
    extra.replaceChildren(h("p", { class: "small muted" }, t("drawHelp")), canvas, where,
      h("div", { class: "row centre" }, button(t("clear"), clear), button(t("close"), shut)));
    canvas.focus();
  }

  async function film(event) {
    stop();
    opener = event.currentTarget;
    const seen = () => { shot.disabled = false; };
    const video = h("video", { autoplay: true, playsinline: true, class: "sketch", onloadeddata: seen });
    const shoot = () => {
      const canvas = h("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      shut();
      canvas.toBlob((file) => send(file), "image/jpeg", 0.95);
    };
    const shot = button(t("shoot"), shoot, { class: "primary", disabled: true });
    extra.replaceChildren(video, h("div", { class: "row centre" }, shot, button(t("close"), shut)));
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: true });
      if (!video.isConnected) halt(video); // closed while the browser asked for permission
    } catch {
      if (!video.isConnected) return;
      stop();
      error.textContent = t("noCamera");
    }
  }

  const halt = (video) => video?.srcObject?.getTracks().forEach((track) => track.stop());

  function stop() {
    halt(extra.querySelector("video"));
    preview.hidden = false;
    extra.replaceChildren();
  }

  const shut = () => { stop(); opener.focus(); }; // the focus returns to the button that opened it
  const close = () => { stop(); run = null; document.removeEventListener("paste", pasted); };
  const pasted = (event) => received(event.clipboardData);
  document.addEventListener("paste", pasted);
  paint();
  return { element: drop, begin, close, take };
}

/** Show in `place` a list of the runs and weight files, and `images`; `told` gets the chosen name and the data sets. */
export function modelList(place, images, told = () => {}) {
  into(place, ask("/api/runs").then(({ runs, datasets }) => {
    const names = runs.filter((run) => run.has_weights).map((run) => run.name);
    if (!names.length) return [h("p", { class: "muted" }, t("noModels"))];
    const { model } = readAddress().values, first = names.includes(model) ? model : names[0];
    const choose = (name) => { told(name, datasets); images.begin(name); };
    const change = (name) => { writeAddress({ values: { model: name } }); choose(name); };
    choose(first);
    return [field(t("model"), first, { choices: names, change, name: "model" }), images.element];
  }));
}
