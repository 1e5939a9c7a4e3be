// One panel of horizontal bars for each network or set of layers.

const MEASURES = {
  relative: ["time over the fastest, geometric mean", (s) => s.relative, (s) => times(s.relative), 1],
  total: ["time of all layers, repeats counted", (s) => s.total, (s) => seconds(s.total), 1],
  percent: ["percent of FMA peak, geometric mean", (s) => s.percent, (s) => percent(s.percent), -1],
  memory: ["largest memory of a layer", (s) => s.memory, (s) => bytes(s.memory), 1],
};
const bars = { measure: "relative" };

function drawPanel(set, wide) {
  const [, value, words, order] = MEASURES[bars.measure];
  const list = scoresOf(set).filter((s) => value(s) !== null)
    .sort((a, b) => partial(a) - partial(b) || order * (value(a) - value(b)));
  if (!list.length) return null;
  const title = set === "" ? "all layers" : set;
  const step = 22;
  const name = (s) => contestants[s.contestant].label + (partial(s) ? ` (${s.layers} of ${s.of})` : "");
  const left = Math.min(Math.max(...list.map((s) => width(name(s)))) + 28, wide * 0.55);
  const room = Math.max(...list.map((s) => width(words(s), true))) + 8;
  // Scores over some of the layers only do not set the scale; a bar that is longer than it is broken.
  const whole = list.filter((s) => !partial(s));
  const most = Math.max(...(whole.length ? whole : list).map(value));
  const broken = (s) => value(s) > most;
  const long = (s) => Math.max(((wide - left - room) * Math.min(value(s), most)) / (most || 1), 1.5);
  const best = list.find((s) => !partial(s));
  return el("div", {},
    el("h3", {}, `${title} (${plural(list[0].of, "layer")})`),
    svg("svg", { height: list.length * step + 4, viewBox: `0 0 ${wide} ${list.length * step + 4}`, role: "img",
      "aria-label": `${title}: ${list.map((s) => `${name(s)} ${words(s)}`).join("; ")}` },
      svg("line", { class: "base", x1: left, x2: left, y1: 0, y2: list.length * step + 2 }),
      ...list.map((s, index) => {
        const middle = index * step + 12;
        const bold = s === best ? "strong" : "";
        return withTip(svg("g", {},
          svg("rect", { class: "target", x: 0, y: index * step, width: wide, height: step }),
          svg("g", { transform: `translate(8,${middle})` }, marker(s.contestant)),
          svg("text", { x: 22, y: middle + 4, class: bold, textLength: width(name(s)) > left - 28 ? left - 28 : null,
            lengthAdjust: "spacingAndGlyphs" }, name(s)),
          svg("rect", { x: left, y: middle - 7, width: long(s), height: 14, rx: 2, fill: hue(s.contestant),
            opacity: partial(s) ? 0.45 : 1 }),
          broken(s) ? svg("path", { class: "break", d: `M${left + long(s) - 14},${middle + 9}l5,-18m5,0l-5,18` }) : null,
          svg("text", { x: left + long(s) + 6, y: middle + 4, class: s === best ? "best" : "" }, words(s))),
        [name(s), ...Object.values(MEASURES).map(([label, , text]) => `${label}: ${text(s)}`),
          `fastest on ${s.wins} of ${plural(s.layers, "layer")}`], false);
      })));
}

function drawBars(whole) {
  const names = state.set !== "" ? [state.set] : sets.length > 1 ? ["", ...sets] : [""];
  const columns = names.length > 1 ? Math.max(1, Math.floor((whole + 32) / (420 + 32))) : 1;
  const wide = (whole - 32 * (columns - 1)) / columns;
  const panels = names.map((name) => drawPanel(name, Math.min(wide, 760))).filter(Boolean);
  byId("bars").classList.toggle("panels", names.length > 1);
  byId("bars").replaceChildren(...(panels.length ? panels : [el("p", { class: "note" }, "Nothing was measured here with this choice.")]));
}

const redrawBars = responsive(byId("bars"), drawBars);

function startBars() {
  const known = Object.keys(MEASURES).filter((key) => scores.some((s) => MEASURES[key][1](s) !== null));
  options(byId("measure"), known.map((key) => [key, MEASURES[key][0]]), (value) => {
    bars.measure = value;
    redrawBars();
  });
}
