"use strict";
// Data, elements and formats. Text from the results goes into the page as text nodes only.

const data = JSON.parse(document.getElementById("results").textContent);
const { contestants, layers, sets } = data;
const results = data.results.rows.map((row) => Object.fromEntries(data.results.fields.map((name, i) => [name, row[i]])));
const scores = data.scores;

// Where all layers are of one network its name is said once, not in each row, which a phone would cut.
const oneSet = new Set(layers.map((layer) => layer.set)).size === 1;
const layerName = (index) => (oneSet ? layers[index].short : layers[index].name);

// What the controls choose; charts and tables draw it.
const state = { threads: data.threads[0] ?? 1, set: "", hidden: new Set() };

const byId = (id) => document.getElementById(id);

function add(parent, children) {
  for (const child of children.flat()) {
    if (child !== null && child !== undefined) parent.append(child);
  }
  return parent;
}

function assign(element, attributes) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") Object.assign(element.style, value);
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  return element;
}

const el = (name, attributes, ...children) => add(assign(document.createElement(name), attributes), children);
const svg = (name, attributes, ...children) =>
  add(assign(document.createElementNS("http://www.w3.org/2000/svg", name), attributes), children);

function options(select, entries, change) {
  select.replaceChildren(...entries.map(([value, label]) => el("option", { value }, label)));
  if (change) select.addEventListener("change", () => change(select.value));
}

// -- formats -------------------------------------------------------------------------------------------------

const digits = (value, count) => {
  if (value === 0) return "0";
  const text = value.toPrecision(count);
  return text.includes("e") ? String(Number(text)) : text;
};
const seconds = (value) => {
  if (value === null) return "–";
  const [unit, factor] = value < 0.9995e-3 ? ["µs", 1e6] : value < 0.9995 ? ["ms", 1e3] : ["s", 1];
  return `${digits(value * factor, 3)} ${unit}`;
};
const bytes = (value) => {
  if (value === null) return "–";
  if (Math.abs(value) < 1024) return `${value} B`;
  let unit = 0;
  let scaled = value / 1024;
  while (Math.abs(scaled) >= 1023.95 && unit < 3) {
    scaled /= 1024;
    unit += 1;
  }
  return `${scaled.toFixed(1)} ${["KiB", "MiB", "GiB", "TiB"][unit]}`;
};
const times = (value) => (value === null ? "–" : value.toFixed(2));
const percent = (value) => (value === null ? "–" : `${value.toFixed(1)} %`);
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// -- what is visible -----------------------------------------------------------------------------------------

const visible = (contestant) => !state.hidden.has(contestant);
const inSet = (layer) => state.set === "" || layers[layer].set === state.set;
const shown = () => results.filter((r) => r.threads === state.threads && visible(r.contestant) && inSet(r.layer));
const timed = () => shown().filter((r) => r.seconds !== null);
const scoresOf = (set) => scores.filter((s) => s.threads === state.threads && s.set === set && visible(s.contestant));

// Whether a score is over some of the layers only: it does not compare with the others, and stands after them.
const partial = (score) => score.layers < score.of;

// Points that no other beats or equals in both memory and time, by memory.
function pareto(points) {
  const front = [];
  for (const point of [...points].sort((a, b) => a.memory - b.memory || a.time - b.time)) {
    if (!front.length || point.time < front.at(-1).time) front.push(point);
  }
  return front;
}

// The lines of a tooltip: the first is the title.
function describe(r) {
  const lines = [contestants[r.contestant].label, layers[r.layer].name];
  if (r.seconds === null) return [...lines, `${r.status}: ${r.reason}`];
  lines.push(`${seconds(r.seconds)}, ${times(r.relative)} of the fastest${r.undecided ? ", undecided" : r.noisy ? ", noisy" : ""}`);
  lines.push(`${percent(r.percent)} of peak, ${digits(r.gflops, 3)} GFLOP/s`);
  lines.push(contestants[r.contestant].peer
    ? `memory measured: ${bytes(r.extra)}`
    : `workspace ${bytes(r.workspace)}, packed weights ${bytes(r.packed)}`);
  if (r.ran) lines.push(`ran ${r.ran}`);
  if (r.parameters) lines.push(r.parameters);
  return lines;
}
