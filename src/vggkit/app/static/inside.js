// The view "Look inside": the maps of any layer for an image, the most active ones first, one of them enlarged.

import { ask, h } from "./dom.js";
import { heatMaps } from "./heat.js";
import { modelList, picker } from "./picker.js";
import { readAddress, writeAddress } from "./state.js";
import { taken } from "./unit.js";
import { t } from "./words.js";

const FIRST = 48;

export function open(main) {
  const left = h("section", { class: "panel stack" }), chips = h("div", { class: "layers" }), gallery = h("div", { class: "maps" });
  const large = h("div"), apart = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("apartTitle") }), told = h("p", { class: "small muted", role: "status" });
  const heat = heatMaps(() => ({ run: view.run, image: images.current().image }));
  const panels = h("div", { class: "stack", hidden: true },
    h("section", { class: "panel" }, h("h2", {}, t("mapsTitle")), chips, told, gallery),
    h("section", { class: "panel two" }, h("div", {}, h("h2", {}, t("oneMap")), large), h("div", {}, h("h2", {}, t("apartTitle")), apart)), heat.element);
  const hint = h("p", { class: "panel muted" }, t("noImage"));
  main.append(h("h1", {}, t("insideTitle")), h("p", { class: "lead" }, t("insideLead")), h("div", { class: "split" }, left, h("div", { class: "stack" }, hint, panels)));
  const view = { run: null, model: null, layer: null, count: FIRST, asked: 0 };
  const images = picker(() => view.run, () => { heat.clear(); look(); });

  modelList(readAddress().values.model, (name) => { writeAddress({ values: { model: name } }); choose(name); }).then(({ name, element }) => {
    left.append(element, ...(name ? [images.element] : []));
    if (name) choose(name);
  }, (error) => left.append(h("p", { class: "error" }, error.message)));

  async function choose(name) {
    view.run = name;
    heat.clear();
    try {
      view.model = await ask("/api/model", { run: name });
    } catch (error) {
      hint.textContent = error.message;
      return;
    }
    const layers = view.model.layers.filter((layer) => layer.part.startsWith("block"));
    if (!layers.some((layer) => layer.name === view.layer)) view.layer = layers.find((layer) => layer.kind === "relu")?.name ?? layers[0]?.name;
    const parts = [...new Set(layers.map((layer) => layer.part))];
    chips.replaceChildren(...parts.map((part) => h("div", { class: "chips" }, layers.filter((layer) => layer.part === part).map((layer) =>
      h("button", { type: "button", class: `mono ${layer.kind}`, "aria-pressed": "false", onclick: () => { view.layer = layer.name; view.count = FIRST; look(); } }, layer.name)))));
    look();
  }

  async function look() {
    const image = images.current();
    if (!image || !view.model) return;
    const asked = ++view.asked, begin = performance.now();
    for (const chip of chips.querySelectorAll("button")) chip.setAttribute("aria-pressed", String(chip.textContent === view.layer));
    try {
      const found = await ask("/api/maps", { run: view.run, image: image.image, layer: view.layer });
      if (asked !== view.asked) return;
      const picture = new Image();
      picture.src = found.picture;
      await picture.decode();
      hint.hidden = true;
      panels.hidden = false;
      told.textContent = t("mapsTold", found.maps.length, view.layer, found.size.join(" × "), Math.round(performance.now() - begin));
      paint(found, picture);
    } catch (error) {
      hint.hidden = false;
      hint.textContent = error.message;
    }
  }

  function paint(found, picture) {
    const [height, width] = found.size;
    const cut = (index, attributes) => {
      const canvas = h("canvas", { width, height, class: "pixels", ...attributes });
      canvas.getContext("2d").drawImage(picture, (index % found.columns) * width, Math.floor(index / found.columns) * height, width, height, 0, 0, width, height);
      return canvas;
    };
    const tiles = found.maps.slice(0, view.count).map((map, index) => h("button", {
      type: "button", "aria-label": t("mapNumber", map.channel, map.mean.toPrecision(3)), title: t("mapNumber", map.channel, map.mean.toPrecision(3)),
      onclick: () => enlarge(index), onpointerenter: () => enlarge(index),
    }, cut(index, { "aria-hidden": "true" })));
    const more = found.maps.length > view.count ? h("button", { type: "button", class: "all", onclick: () => { view.count = found.maps.length; paint(found, picture); } }, t("showAll", found.maps.length)) : "";
    gallery.replaceChildren(...tiles, more);
    let shown = null;
    enlarge(0);

    function enlarge(index) {
      if (shown === index) return;
      shown = index;
      const map = found.maps[index], place = { y: Math.floor(height / 2), x: Math.floor(width / 2) };
      const mark = h("i", { class: "mark-place" });
      const canvas = cut(index, { tabindex: "0", role: "application", "aria-label": t("mapHelp") });
      const box = h("div", { class: "enlarged" }, canvas, mark);
      const put = () => {
        mark.style.cssText = "";
        mark.style.left = `${(100 * place.x) / width}%`; mark.style.top = `${(100 * place.y) / height}%`;
        mark.style.width = `${100 / width}%`; mark.style.height = `${100 / height}%`;
      };
      const take = () => { put(); if (view.model.layers.find((layer) => layer.name === view.layer).kind === "conv") taken(apart, { run: view.run, image: images.current().image, layer: view.layer, channel: map.channel, ...place }); };
      canvas.addEventListener("click", (event) => {
        const at = canvas.getBoundingClientRect();
        place.x = Math.min(width - 1, Math.floor(((event.clientX - at.left) / at.width) * width));
        place.y = Math.min(height - 1, Math.floor(((event.clientY - at.top) / at.height) * height));
        take();
      });
      canvas.addEventListener("keydown", (event) => {
        const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
        if (!move) return;
        event.preventDefault();
        place.y = Math.max(0, Math.min(height - 1, place.y + move[0]));
        place.x = Math.max(0, Math.min(width - 1, place.x + move[1]));
        take();
      });
      large.replaceChildren(box, h("p", { class: "small muted" }, t("mapFacts", map.channel, map.mean.toPrecision(3), map.least.toPrecision(3), map.most.toPrecision(3))));
      put();
      const isConvolution = view.model.layers.find((layer) => layer.name === view.layer).kind === "conv";
      apart.replaceChildren(h("p", { class: "muted" }, t(isConvolution ? "apartHelp" : "apartOnlyConv")));
      if (isConvolution && index === 0) take();
    }
  }
  return () => images.close();
}
