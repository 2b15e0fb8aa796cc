// The view "Look inside": what any layer makes of an image, the most active maps first, one of them enlarged.

import { ask, button, h, panel, region, repaint } from "./dom.js";
import { exciting, heatMaps } from "./explain.js";
import { enlarged, taken, values } from "./layer.js";
import { modelList, picker } from "./picker.js";
import { t } from "./words.js";

const FIRST = 48;

export function open(main) {
  const view = { run: null, image: null, model: null, layer: null, unit: 0, count: FIRST };
  const heat = heatMaps(() => ({ run: view.run, image: view.image }));
  const excites = exciting(() => ({ run: view.run, unit: `${view.layer}:${view.unit}` }));
  const chips = h("div", { class: "layers" }), gallery = h("div", { class: "maps" }), large = h("div");
  const left = h("section", { class: "panel stack" }), apart = region(t("apartTitle"), []);
  const told = h("p", { class: "small muted", role: "status" }), hint = h("p", { class: "panel muted" }, t("noImage"));
  const one = h("section", { class: "panel two" },
    h("div", {}, h("h2", {}, t("oneMap")), large), h("div", {}, h("h2", {}, t("apartTitle")), apart));
  const panels = h("div", { class: "stack", hidden: true },
    panel(t("mapsTitle"), chips, told, gallery), one, excites.element, heat.element);
  main.append(h("div", { class: "split" }, left, h("div", { class: "stack" }, hint, panels)));
  const images = picker(({ image }) => {
    view.image = image;
    heat.clear();
    if (image) look();
    else fail({ message: t("noImage") });
  });
  modelList(left, images, choose);

  const fail = ({ message }) => { hint.textContent = message; hint.hidden = false; panels.hidden = true; };
  const pick = (unit) => { view.unit = unit; excites.show(); };

  async function choose(run, datasets) {
    Object.assign(view, { run, model: null });
    const model = await ask("/api/model", { run }, "model").catch(fail);
    if (!model) return;
    view.model = model;
    const { layers, methods, has_data: hasData } = model;
    heat.offer(methods);
    excites.offer(hasData, datasets);
    if (!layers.some(({ name }) => name === view.layer)) {
      view.layer = (layers.find(({ kind }) => kind === "relu") ?? layers[0]).name;
    }
    const show = (layer) => { Object.assign(view, { layer, count: FIRST }); look(); };
    const chip = ({ name, kind }) => button(name, () => show(name), { class: `mono ${kind}`, "aria-pressed": "false" });
    const parts = [...Map.groupBy(layers, (layer) => layer.part).values()];
    chips.replaceChildren(...parts.map((part) => h("div", { class: "chips" }, part.map(chip))));
    look();
  }

  async function look() {
    if (!view.image || !view.model) return;
    const begin = performance.now(), { run, image, layer } = view;
    const isNewest = () => run === view.run && image === view.image && layer === view.layer;
    for (const chip of chips.querySelectorAll("button")) {
      chip.setAttribute("aria-pressed", String(chip.textContent === layer));
    }
    try {
      const found = await ask("/api/maps", { run, image, layer }, "maps");
      const picture = new Image();
      picture.src = found.picture;
      await picture.decode();
      if (isNewest()) paint(found, picture, Math.round(performance.now() - begin));
    } catch (error) {
      if (isNewest()) fail(error);
    }
  }

  function paint(found, picture, took) {
    hint.hidden = true;
    panels.hidden = false;
    one.hidden = !found.maps;
    gallery.className = found.maps ? "maps" : "values";
    if (found.maps) {
      told.textContent = t("mapsTold", found.maps.length, view.layer, found.size.join(" × "), took);
      paintMaps(found, picture);
      return;
    }
    const [least, most] = [found.least, found.most].map((value) => value.toPrecision(3));
    told.textContent = t("valuesTold", found.count, view.layer, least, most, took);
    repaint(gallery, ...values(found, view.layer, pick));
    pick(found.largest[0].unit);
  }

  function paintMaps(found, picture) {
    const { run, image, layer } = view, [height, width] = found.size;
    const cut = (index, attributes) => {
      const canvas = h("canvas", { width, height, class: "pixels", ...attributes });
      const [x, y] = [(index % found.columns) * width, Math.floor(index / found.columns) * height];
      canvas.getContext("2d").drawImage(picture, x, y, width, height, 0, 0, width, height);
      return canvas;
    };
    const tile = (map, index) => {
      const words = t("mapNumber", map.channel, map.mean.toPrecision(3)), show = () => enlarge(index);
      const attributes = { "aria-label": words, title: words, onpointerenter: show };
      return button(cut(index, { "aria-hidden": "true" }), show, attributes);
    };
    const all = () => { view.count = found.maps.length; paintMaps(found, picture); };
    repaint(gallery, ...found.maps.slice(0, view.count).map(tile),
      found.maps.length > view.count ? button(t("showAll", found.maps.length), all, { class: "all" }) : "");
    const { kind, part } = view.model.layers.find(({ name }) => name === layer);
    const canTake = kind === "conv" && part.startsWith("block");
    let shown = null;
    enlarge(0);

    function enlarge(index) {
      if (shown === index) return;
      shown = index;
      const map = found.maps[index], { channel } = map;
      const canvas = cut(index, { tabindex: "0", role: "application", "aria-label": t("mapHelp") });
      const take = (place) => canTake && taken(apart, { run, image, layer, channel, ...place });
      const { place, parts } = enlarged(canvas, map, take);
      large.replaceChildren(...parts);
      apart.replaceChildren(h("p", { class: "muted" }, t(canTake ? "apartHelp" : "apartOnlyConv")));
      pick(channel);
      if (index === 0) take(place);
    }
  }
  return images.close;
}
