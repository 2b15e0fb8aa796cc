// The view and the design, held in the address: `#/design?network=vgg16&image_size=224&…`.

export const DEFAULTS = {
  network: "vgg11", in_channels: "1", image_size: "224", num_classes: "10", head: "flatten", pooled_size: "7",
  hidden: "4096,4096", dropout: "0.5", batch_size: "128", optimizer: "sgd", dtype: "float32", beside: "",
};

export function readAddress() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  return { view: path || "design", values: { ...DEFAULTS, ...Object.fromEntries(new URLSearchParams(query)) } };
}

/** The address of a view; only values that differ from the defaults are written. */
export function addressOf(view, values) {
  const told = Object.entries(values).filter(([name, value]) => String(value) !== (DEFAULTS[name] ?? ""));
  const query = new URLSearchParams(told).toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

/** Change the view or some values. */
export function writeAddress({ view, values }, isStep = false) {
  const now = readAddress(), address = addressOf(view ?? now.view, { ...now.values, ...values });
  if (address !== location.hash) history[isStep ? "pushState" : "replaceState"](null, "", address);
}

/** The number that a text is, or the text itself. */
export const number = (text) => (text.trim() === "" || Number.isNaN(Number(text)) ? text : Number(text));

/** The numbers of a list that spaces or commas separate. */
export const numbers = (text) => text.split(/[ ,]+/).filter(Boolean).map(number);

/** The design in the address as the server takes it. */
export function designOf(values, text = values.network) {
  const options = {
    in_channels: number(values.in_channels), image_size: number(values.image_size),
    num_classes: number(values.num_classes), head: values.head, dropout: number(values.dropout),
  };
  if (values.head !== "gap") options.hidden = numbers(values.hidden);
  if (values.head === "adaptive" || values.head === "conv") options.pooled_size = number(values.pooled_size);
  return { text, options };
}

export function requestOf(values) {
  const designs = [designOf(values)];
  if (values.beside) designs.push(designOf(values, values.beside));
  return { designs, batch_size: number(values.batch_size), optimizer: values.optimizer, dtype: values.dtype };
}
