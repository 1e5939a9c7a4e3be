// Time against memory of one layer, or of all, with the Pareto front.

const MEMORIES = {
  memory: ["declared; other libraries: measured", (r) => r.memory],
  workspace: ["workspace of a call", (r) => (contestants[r.contestant].peer ? null : r.workspace)],
  extra: ["measured peak", (r) => r.extra],
};
const ALL_LAYERS = "all";
const scatter = { layer: "0", memory: "memory" };

function scatterPoints() {
  if (scatter.layer === ALL_LAYERS) {
    return scoresOf(state.set).filter((s) => s.memory !== null).map((s) => ({
      contestant: s.contestant, memory: s.memory, time: s.relative,
      lines: [contestants[s.contestant].label, `${times(s.relative)} times the fastest, geometric mean`,
        `largest memory ${bytes(s.memory)}`, `${s.layers} of ${plural(s.of, "layer")}`],
    }));
  }
  const memory = MEMORIES[scatter.memory][1];
  return results
    .filter((r) => r.layer === Number(scatter.layer) && r.threads === state.threads && visible(r.contestant))
    .filter((r) => r.seconds !== null && memory(r) !== null)
    .map((r) => ({ contestant: r.contestant, memory: memory(r), time: r.seconds, undecided: r.undecided, lines: describe(r) }));
}

function drawScatter(wide) {
  const figure = byId("scatter");
  const all = scatter.layer === ALL_LAYERS;
  const points = scatterPoints();
  if (!points.length) {
    figure.replaceChildren(el("p", { class: "note" }, "Nothing was measured here with this choice."));
    return;
  }
  const tall = Math.round(Math.min(460, Math.max(300, wide * 0.5)));
  const box = { left: wide < 500 ? 50 : 64, right: wide - 14, top: 26, bottom: tall - 44 };
  const [least, most] = [Math.min(...points.map((p) => p.memory)), Math.max(...points.map((p) => p.memory), 1024)];
  const [quick, slow] = [Math.min(...points.map((p) => p.time)), Math.max(...points.map((p) => p.time))];
  const [low, high] = [quick / 1.12, Math.max(slow * 1.12, quick * 1.5)];
  // The scale begins at 0 only if somebody needs next to no memory.
  const from = least < 4096 ? 0 : least / 2;
  const sx = scale(from, most * 1.6, box.left + 12, box.right, from ? 0 : 1024);
  const sy = scale(low, high, box.bottom - 4, box.top);
  for (const point of points) [point.x, point.y] = [sx(point.memory), sy(point.time)];
  const front = pareto(points);
  const time = all ? (value) => digits(value, 2) : seconds;
  const steps = from ? [] : [0];
  for (let size = 1024; size <= most * 1.6; size *= 2) {
    if (size >= from) steps.push(size);
  }
  const size = (value) => bytes(value).replace(".0 ", " ");
  const ticks = spaced(steps.filter((v) => v === 0 || Math.log2(v) % 2 === 0 || steps.length < 9), sx, size);
  let stairs = `M${front[0].x},${box.top}V${front[0].y}`;
  for (const point of front.slice(1)) stairs += `H${point.x}V${point.y}`;
  stairs += `H${box.right}`;
  const order = [...front, ...points.filter((p) => !front.includes(p)).sort((a, b) => a.time - b.time)];
  const name = all ? "all layers" : `${layers[scatter.layer].name}, ${layers[scatter.layer].shape}`;
  figure.replaceChildren(
    svg("svg", { height: tall, viewBox: `0 0 ${wide} ${tall}`, role: "group", "aria-label": `Time against memory, ${name}` },
      ...decades(low, high).map((v) => [
        svg("line", { class: "grid", x1: box.left, x2: box.right, y1: sy(v), y2: sy(v) }),
        svg("text", { class: "axis", x: box.left - 8, y: sy(v) + 4, "text-anchor": "end" }, time(v)),
      ]),
      ...ticks.map((v) => [
        svg("line", { class: "grid", x1: sx(v), x2: sx(v), y1: box.top, y2: box.bottom }),
        svg("text", { class: "axis", x: sx(v), y: box.bottom + 17, "text-anchor": "middle" }, size(v)),
      ]),
      svg("text", { class: "unit", x: 0, y: 12 }, all ? "time over that of the fastest" : "time of a call"),
      svg("text", { class: "unit", x: box.right, y: tall - 6, "text-anchor": "end" }, all ? "largest memory" : "memory"),
      svg("path", { class: "area", d: `${stairs}V${box.top}Z` }),
      svg("path", { class: "front", d: stairs }),
      ...order.toReversed().map((p) => withTip(
        svg("g", { transform: `translate(${p.x},${p.y})` }, svg("circle", { r: 11, class: "target" }), marker(p.contestant)),
        p.lines, true)),
      ...labels(order.map((p) => ({ ...p, text: contestants[p.contestant].label + (p.undecided ? " ?" : ""), strong: front.includes(p) })), points,
        { left: box.left, right: wide, top: 14, bottom: box.bottom + 2 })),
    el("figcaption", {}, `${name}; ${plural(state.threads, "thread")}. On the front: `
      + `${front.map((p) => contestants[p.contestant].label).join(", ")}.`));
}

const redrawScatter = responsive(byId("scatter"), drawScatter);

function scatterLayers() {
  const entries = layers.map((layer, index) => [String(index), layer.name, index]).filter(([, , index]) => inSet(index));
  if (entries.length > 1) entries.push([ALL_LAYERS, "all of these layers"]);
  options(byId("layer"), entries);
  if (!entries.some(([value]) => value === scatter.layer)) scatter.layer = entries[0]?.[0] ?? ALL_LAYERS;
  byId("layer").value = scatter.layer;
}

function stepLayer(step) {
  const select = byId("layer");
  select.selectedIndex = (select.selectedIndex + step + select.length) % select.length;
  select.dispatchEvent(new Event("change"));
}

function startScatter() {
  const known = (key) => key === "memory" || results.some((r) => r.seconds !== null && MEMORIES[key][1](r) !== null);
  options(byId("memory"), Object.keys(MEMORIES).filter(known).map((key) => [key, MEMORIES[key][0]]), (value) => {
    scatter.memory = value;
    redrawScatter();
  });
  byId("layer").addEventListener("change", () => {
    scatter.layer = byId("layer").value;
    byId("memory").disabled = scatter.layer === ALL_LAYERS;
    redrawScatter();
  });
  byId("previous").addEventListener("click", () => stepLayer(-1));
  byId("next").addEventListener("click", () => stepLayer(1));
}
