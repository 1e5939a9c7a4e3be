// Tables that sort by any column, with the mouse or the keyboard.

// Fills `place` with a table. Columns: {name, value(row), cell(row) -> td or th, text: left aligned, most: sorted from the
// largest first, last(row): stays below, whichever way it is sorted}. `most`: rows shown before a button asks for the others.
function sortable(place, columns, rows, { caption, name = "", sorted = null, most = Infinity } = {}) {
  const memory = place.sorting ?? (place.sorting = { column: null, down: false });
  if (memory.column === null && sorted) memory.column = sorted;
  const current = columns.find((column) => column.name === memory.column);
  const compare = (a, b) => {
    if (current.last && current.last(a) !== current.last(b)) return current.last(a) - current.last(b);
    const [x, y] = [current.value(a), current.value(b)];
    // What has no value stays below, whichever way it is sorted.
    if (x === null || y === null) return (x === null) - (y === null);
    const order = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
    return memory.down ? -order : order;
  };
  const ordered = current ? [...rows].sort(compare) : rows;
  const redraw = (focus) => {
    sortable(place, columns, rows, { caption, name, sorted, most });
    if (focus) [...place.querySelectorAll("thead button")].find((b) => b.textContent === focus)?.focus({ preventScroll: true });
  };
  const sort = (column) => {
    if (memory.column === column.name) memory.down = !memory.down;
    else Object.assign(memory, { column: column.name, down: column.most === true });
    redraw(column.name);
  };
  const head = columns.map((column) => el("th", {
    scope: "col", class: column.text ? "text" : "",
    "aria-sort": column !== current ? null : memory.down ? "descending" : "ascending",
  }, el("button", { type: "button", onclick: () => sort(column) }, column.name)));
  const shownRows = ordered.slice(0, most);
  const [x, y] = [place.scrollLeft, place.scrollTop];
  place.replaceChildren(el("table", { class: name },
    el("caption", { class: "hidden" }, caption),
    el("thead", {}, el("tr", {}, ...head)),
    el("tbody", {}, ...shownRows.map((row) => el("tr", {}, ...columns.map((column) => column.cell(row)))))));
  if (ordered.length > shownRows.length) {
    place.append(el("p", { class: "more" }, el("button", { type: "button", onclick: () => {
      sortable(place, columns, rows, { caption, name, sorted });
    } }, `Show all ${ordered.length} rows`)));
  }
  assign(place, { tabindex: 0, role: "region", "aria-label": caption });
  place.scrollTo(x, y);
}

const number = (name, value, words, extra = {}) => ({
  name, value, cell: (row) => el("td", { class: extra.mark?.(row) ?? "" }, words(value(row), row)), ...extra,
});
const text = (name, value, extra = {}) => ({ name, value, text: true, cell: (row) => el("td", { class: "text" }, value(row)), ...extra });
const named = (contestant) => el("th", { scope: "row", class: "text" }, badge(contestant), ` ${contestants[contestant].label}`);
const label = (row) => contestants[row.contestant].label;

function drawSummary() {
  const list = scoresOf(state.set);
  const worst = Math.max(...list.map((s) => s.relative), 1);
  const best = list.filter((s) => !partial(s)).sort((a, b) => a.relative - b.relative)[0];
  const cold = coldStarts();
  const meter = (s) => el("span", { class: "track", "aria-hidden": "true" }, el("span", { class: "meter", css: {
    width: `${Math.max(2, (86 * s.relative) / worst)}px`, background: hue(s.contestant) } }));
  sortable(byId("summary"), [
    { ...text("contestant", label), cell: (s) => named(s.contestant) },
    { name: "time / best", value: (s) => s.relative, last: partial,
      cell: (s) => el("td", { class: s === best ? "best" : "" }, times(s.relative), meter(s)) },
    number("% of peak", (s) => s.percent, (v) => v.toFixed(1), { most: true, last: partial }),
    number("fastest on", (s) => s.wins, (v) => String(v), { most: true }),
    number("layers", (s) => s.layers, (v, s) => `${v} of ${s.of}`, { most: true, mark: (s) => (partial(s) ? "warn" : "") }),
    number("total time", (s) => s.total, seconds),
    number("largest memory", (s) => s.memory, bytes),
    ...(cold.size ? [number("first call / later", (s) => cold.get(s.contestant) ?? null, (v) => (v === null ? "–" : `${digits(v, 3)} ×`))] : []),
    number("noisy", (s) => s.noisy, (v) => (v ? String(v) : "–"), { mark: (s) => (s.noisy ? "warn" : "none") }),
  ], list, { caption: "Summary of all contestants", sorted: "time / best" });
}

// The geometric mean over the layers of the first call's time over that of a later one.
function coldStarts() {
  const logs = new Map();
  for (const r of timed()) {
    if (r.cold > 0) logs.set(r.contestant, [...(logs.get(r.contestant) ?? []), Math.log(r.cold / r.seconds)]);
  }
  return new Map([...logs].map(([key, list]) => [key, Math.exp(list.reduce((a, b) => a + b, 0) / list.length)]));
}

const CELLS = {
  relative: ["time over the fastest", times],
  seconds: ["time of a call", seconds],
  percent: ["percent of FMA peak", (value) => (value === null ? "–" : value.toFixed(0))],
  memory: ["memory beyond image, weights and output", bytes],
};
let cellShown = "relative";

function drawMatrix() {
  const places = new Map();
  for (const r of shown()) places.set(`${r.layer}/${r.contestant}`, r);
  const used = contestants.map((_, index) => index).filter((index) => visible(index) && shown().some((r) => r.contestant === index));
  const rows = layers.map((_, index) => index).filter(inSet);
  const words = CELLS[cellShown][1];
  const value = (layer, contestant) => places.get(`${layer}/${contestant}`)?.[cellShown] ?? null;
  const cell = (layer, contestant) => {
    const r = places.get(`${layer}/${contestant}`);
    if (!r || r.seconds === null) return el("td", { class: r && r.status !== "not applicable" ? "bad" : "none", title: r ? `${r.status}: ${r.reason}` : null }, r ? "×" : "");
    const strength = Math.max(0, 1 - Math.log2(r.relative)) * 0.38;
    return el("td", { class: r.best ? "best" : r.undecided ? "warn" : "", css: { backgroundColor: `rgba(var(--tint), ${strength.toFixed(3)})` },
      title: describe(r).join("\n") }, words(r[cellShown]) + (r.undecided ? " ?" : ""));
  };
  sortable(byId("matrix"), [
    { name: "layer", text: true, value: (layer) => layer, cell: (layer) => el("th", { scope: "row", class: "text", title: `${layers[layer].name}, ${layers[layer].shape}` }, layerName(layer)) },
    ...used.map((contestant) => ({ name: contestants[contestant].label, value: (layer) => value(layer, contestant), cell: (layer) => cell(layer, contestant),
      most: cellShown === "percent" })),
  ], rows, { caption: `Layer by layer: ${CELLS[cellShown][0]}`, name: "matrix" });
}

const WHICH = {
  all: ["all", () => true],
  best: ["the fastest of each layer", (r) => r.best],
  noisy: ["noisy or undecided", (r) => r.noisy || r.undecided],
  failed: ["failed or wrong", (r) => r.seconds === null && r.status !== "not applicable"],
  refused: ["not applicable", (r) => r.status === "not applicable"],
};
let whichRows = "all";

function drawRows() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  const hay = (r) => `${layers[r.layer].name} ${layers[r.layer].shape} ${label(r)} ${r.status}`.toLowerCase();
  const list = shown().filter(WHICH[whichRows][1]).filter((r) => words.every((word) => hay(r).includes(word)));
  const some = (field) => list.some((r) => r[field] !== null);
  byId("count").textContent = `${plural(list.length, "row")}, ${plural(state.threads, "thread")}`;
  const spread = (v) => (v === null ? "–" : `${(100 * v).toFixed(1)} %`);
  const relative = (v, r) => times(v) + (r.undecided ? " ?" : "");
  const error = (v) => (v === null ? "–" : v.toExponential(1));
  sortable(byId("rows"), [
    { ...text("layer", (r) => layers[r.layer].name), cell: (r) => el("th", { scope: "row", class: "text", title: `${layers[r.layer].name}, ${layers[r.layer].shape}` }, layerName(r.layer)) },
    { ...text("contestant", label), cell: (r) => el("td", { class: r.best ? "text best" : "text" }, badge(r.contestant), ` ${label(r)}`) },
    { name: "time", value: (r) => r.seconds, cell: (r) => (r.seconds === null
      ? el("td", { class: r.status === "not applicable" ? "none" : "bad" }, r.status) : el("td", {}, seconds(r.seconds))) },
    number("spread", (r) => r.spread, spread, { mark: (r) => (r.noisy ? "warn" : "") }),
    number("time / best", (r) => r.relative, relative, { mark: (r) => (r.best ? "best" : r.undecided ? "warn" : "") }),
    number("GFLOP/s", (r) => r.gflops, (v) => (v === null ? "–" : v.toFixed(1)), { most: true }),
    number("% of peak", (r) => r.percent, (v) => (v === null ? "–" : v.toFixed(1)), { most: true }),
    number("workspace", (r) => (r.seconds === null || contestants[r.contestant].peer ? null : r.workspace), bytes),
    number("packed weights", (r) => (r.seconds === null || contestants[r.contestant].peer ? null : r.packed), bytes),
    ...(some("extra") ? [number("measured memory", (r) => r.extra, bytes)] : []),
    ...(some("cold") ? [number("first call", (r) => r.cold, seconds)] : []),
    number("error", (r) => r.error, error, { mark: (r) => (r.status === "wrong result" ? "bad" : "") }),
    ...(list.some((r) => r.reason) ? [{ ...text("reason", (r) => r.reason || null),
      cell: (r) => el("td", { class: "long" }, r.reason) }] : []),
  ], list, { caption: "All measurements", most: 300 });
}

function startTables() {
  options(byId("cell"), Object.entries(CELLS).map(([key, [name]]) => [key, name]), (value) => { cellShown = value; drawMatrix(); });
  options(byId("which"), Object.entries(WHICH).map(([key, [name]]) => [key, name]), (value) => { whichRows = value; drawRows(); });
  byId("filter").addEventListener("input", drawRows);
}
