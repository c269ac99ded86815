// What is shared by all parts: making elements, and saying numbers.
// Everything that comes from the gateway goes through textContent or an attribute, never through HTML.

export const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children);

export const svg = (name, attributes = {}, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);

function fill(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

/** Change a text only where it is another one: what is selected or read aloud is left alone. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

const scaled = (value, units, step) => {
  let i = 0;
  for (; value >= step && i < units.length - 1; i++) value /= step;
  return `${i && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[i]}`;
};
export const bytes = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB", "PB"], 1000);
export const rate = (n) => scaled(n * 8, ["b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"], 1000);
export const micros = (n) => (n ? scaled(n, ["µs", "ms", "s"], 1000) : "–");
export const clock = (at) => new Date(at).toLocaleTimeString([], { hour12: false });

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} d`;
}

export const ENDED = new Set(["RELEASED", "EXPIRED", "FAILED"]);
export const tone = (state) =>
  ({ ACTIVE: "good", RUNNING: "good", RECOVERING: "bad", FAILED: "bad", BACKOFF: "bad", FATAL: "bad" })[state] ??
  (ENDED.has(state) ? "soft" : "warn");
export const number = (value) => Number(value ?? 0);

/** Keep the children of a node the same as a list, by key: make what is new, remove what has gone, reorder the rest. */
export function keep(parent, items, keyOf, make, update) {
  const have = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  let before = null;
  for (const item of items) {
    const key = keyOf(item);
    let node = have.get(key);
    have.delete(key);
    if (!node) {
      node = make(item);
      node.dataset.key = key;
    }
    update(node, item);
    const place = before ? before.nextElementSibling : parent.firstElementChild;
    if (place !== node) parent.insertBefore(node, place);
    before = node;
  }
  for (const node of have.values()) node.remove();
}
