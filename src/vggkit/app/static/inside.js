// The view "Look inside": what any layer makes of an image, the most active maps first, one of them enlarged.

import { ask, h, repaint } from "./dom.js";
import { exciting } from "./excites.js";
import { heatMaps } from "./heat.js";
import { enlarged } from "./map.js";
import { modelList, picker } from "./picker.js";
import { readAddress, writeAddress } from "./state.js";
import { taken } from "./unit.js";
import { values } from "./values.js";
import { t } from "./words.js";

const FIRST = 48;

export function open(main) {
  const left = h("section", { class: "panel stack" }), chips = h("div", { class: "layers" }), gallery = h("div", { class: "maps" });
  const large = h("div"), apart = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": t("apartTitle") }), told = h("p", { class: "small muted", role: "status" });
  const heat = heatMaps(() => ({ run: view.run, image: images.current().image }));
  const excites = exciting(() => ({ run: view.run, unit: `${view.layer}:${view.unit}` }));
  const one = h("section", { class: "panel two" }, h("div", {}, h("h2", {}, t("oneMap")), large), h("div", {}, h("h2", {}, t("apartTitle")), apart));
  const panels = h("div", { class: "stack", hidden: true }, h("section", { class: "panel" }, h("h2", {}, t("mapsTitle")), chips, told, gallery), one, excites.element, heat.element);
  const hint = h("p", { class: "panel muted" }, t("noImage"));
  main.append(h("h1", {}, t("insideTitle")), h("p", { class: "lead" }, t("insideLead")), h("div", { class: "split" }, left, h("div", { class: "stack" }, hint, panels)));
  const view = { run: null, model: null, layer: null, unit: 0, count: FIRST, asked: 0, datasets: [] };
  const images = picker(() => view.run, () => { heat.clear(); look(); });

  modelList(readAddress().values.model, (name) => { writeAddress({ values: { model: name } }); choose(name); }).then(({ name, element, datasets }) => {
    view.datasets = datasets;
    left.append(element, ...(name ? [images.element] : []));
    if (name) choose(name);
  }, (error) => left.append(h("p", { class: "error" }, error.message)));

  async function choose(name) {
    view.run = name;
    try {
      view.model = await ask("/api/model", { run: name });
    } catch (error) {
      hint.textContent = error.message;
      return;
    }
    heat.offer(view.model.methods);
    excites.offer(view.model.has_data, view.datasets);
    const { layers } = view.model;
    if (!layers.some((layer) => layer.name === view.layer)) view.layer = layers.find((layer) => layer.kind === "relu")?.name ?? layers[0].name;
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
      const took = Math.round(performance.now() - begin);
      one.hidden = !found.maps;
      told.textContent = found.maps ? t("mapsTold", found.maps.length, view.layer, found.size.join(" × "), took)
        : t("valuesTold", found.count, view.layer, found.least.toPrecision(3), found.most.toPrecision(3), took);
      gallery.className = found.maps ? "maps" : "values";
      if (found.maps) paint(found, picture);
      else {
        repaint(gallery, ...values(found, view.layer, pick));
        pick(found.largest[0].unit);
      }
    } catch (error) {
      hint.hidden = false;
      hint.textContent = error.message;
    }
  }

  function pick(unit) {
    view.unit = unit;
    excites.show();
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
    repaint(gallery, ...tiles, more);
    const layer = view.model.layers.find(({ name }) => name === view.layer), canTake = layer.kind === "conv" && layer.part.startsWith("block");
    let shown = null;
    enlarge(0);

    function enlarge(index) {
      if (shown === index) return;
      shown = index;
      const map = found.maps[index];
      const take = (place) => canTake && taken(apart, { run: view.run, image: images.current().image, layer: view.layer, channel: map.channel, ...place });
      const { place, parts } = enlarged(cut(index, { tabindex: "0", role: "application", "aria-label": t("mapHelp") }), map, take);
      large.replaceChildren(...parts);
      apart.replaceChildren(h("p", { class: "muted" }, t(canTake ? "apartHelp" : "apartOnlyConv")));
      pick(map.channel);
      if (index === 0) take(place);
    }
  }
  return () => images.close();
}
