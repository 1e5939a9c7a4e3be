// Markers, axes, labels and tooltips that the charts share.

const SHAPES = [
  "M-5,0A5,5 0 1,0 5,0A5,5 0 1,0 -5,0Z",
  "M-4.4,-4.4H4.4V4.4H-4.4Z",
  "M0,-5.6L5.2,4H-5.2Z",
  "M0,-6L5.4,0L0,6L-5.4,0Z",
  "M0,5.6L5.2,-4H-5.2Z",
  "M-1.9,-5.4H1.9V-1.9H5.4V1.9H1.9V5.4H-1.9V1.9H-5.4V-1.9H-1.9Z",
  "M0,-6L1.8,-2.1L5.9,-1.8L2.8,1L3.7,5.1L0,2.9L-3.7,5.1L-2.8,1L-5.9,-1.8L-1.8,-2.1Z",
];
const hue = (contestant) => `var(--c${contestants[contestant].hue % 10})`;
const layouts = [...new Set(contestants.map((c) => c.layout))];

// Colour and shape stand for the algorithm, hollow markers for the second layout.
function marker(contestant, attributes) {
  const { hue: number, layout, label } = contestants[contestant];
  const hollow = label !== contestants[contestant].algorithm && layouts.indexOf(layout) > 0;
  const paint = hollow ? { stroke: hue(contestant) } : { fill: hue(contestant), stroke: "var(--card)" };
  return svg("path", { class: hollow ? "mark hollow" : "mark", d: SHAPES[number % SHAPES.length], ...paint, ...attributes });
}

const badge = (contestant) => svg("svg", { class: "badge", viewBox: "-8 -8 16 16", "aria-hidden": "true" }, marker(contestant));

// -- tooltips ------------------------------------------------------------------------------------------------

const tip = byId("tip");

function showTip(lines, x, y) {
  tip.replaceChildren(el("b", {}, lines[0]), ...lines.slice(1).map((line) => el("div", {}, line)));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
  const top = y + 16 + box.height > innerHeight ? y - box.height - 12 : y + 16;
  Object.assign(tip.style, { left: `${Math.max(8, left)}px`, top: `${Math.max(8, top)}px` });
}

const hideTip = () => { tip.hidden = true; };
// The tooltip of what has the focus moves with it; focusing it may be what scrolled.
addEventListener("scroll", () => { if (!document.activeElement?.matches(".point")) hideTip(); }, { passive: true });
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("pointerdown", (event) => { if (!event.target.closest?.(".point")) hideTip(); });

// A group that shows lines when it is pointed at, tapped or, if it can be, focused.
function withTip(group, lines, focusable) {
  const at = (event) => showTip(lines, event.clientX, event.clientY);
  const box = () => group.getBoundingClientRect();
  return assign(group, {
    class: "point", onpointerenter: at, onpointerdown: at, onpointerleave: hideTip, onblur: hideTip,
    onfocus: () => showTip(lines, box().right, box().bottom),
    ...(focusable ? { tabindex: 0, role: "img", "aria-label": lines.join("; ") } : {}),
  });
}

// -- scales and axes -----------------------------------------------------------------------------------------

// Maps values to pixels on a logarithmic scale; below `least` it is linear, so that 0 has a place.
function scale(low, high, from, to, least = 0) {
  const place = (value) => {
    if (!least) return Math.log(value);
    return value <= least ? (value / least) * 0.7 * Math.LN2 : 0.7 * Math.LN2 + Math.log(value / least);
  };
  const [a, b] = [place(low), place(high)];
  return (value) => from + ((place(value) - a) / (b - a || 1)) * (to - from);
}

// Round numbers within limits: as many of each power of ten as give about five.
function decades(low, high, most = 9) {
  let inside = [];
  for (const steps of [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [1, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2, 2.2, 2.5, 2.8, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 9]]) {
    const finer = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
      finer.push(...steps.map((step) => Number(`${step}e${power}`)).filter((v) => v >= low && v <= high));
    }
    if (inside.length >= 2 && finer.length > most) break;
    inside = finer;
    if (inside.length >= 5) break;
  }
  return inside;
}

// Leaves out ticks whose words would touch the words before.
function spaced(ticks, place, words, gap = 14) {
  let end = -Infinity;
  return ticks.filter((tick) => {
    const half = width(words(tick)) / 2;
    if (place(tick) - half < end + gap) return false;
    end = place(tick) + half;
    return true;
  });
}

const pen = document.createElement("canvas").getContext("2d");
function width(text, strong = false) {
  pen.font = `${strong ? "bold " : ""}12px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width;
}

// Puts a label beside each point where it touches no point and no other label; who finds no place goes without.
// Items, the most important first: {x, y, text, strong}. `box`: the limits {left, right, top, bottom}.
function labels(items, points, box) {
  const taken = points.map(({ x, y }) => ({ left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 }));
  const free = (spot) => spot.left >= box.left && spot.right <= box.right && spot.top >= box.top && spot.bottom <= box.bottom
    && !taken.some((o) => spot.left < o.right && spot.right > o.left && spot.top < o.bottom && spot.bottom > o.top);
  const drawn = [];
  for (const { x, y, text, strong } of items) {
    const long = width(text, strong) + 2;
    const places = [[x + 9, y - 7], [x - 9 - long, y - 7], [x - long / 2, y - 23], [x - long / 2, y + 9],
      [x + 7, y - 20], [x + 7, y + 6], [x - 7 - long, y - 20], [x - 7 - long, y + 6]];
    const spot = places.map(([left, top]) => ({ left, top, right: left + long, bottom: top + 14 })).find(free);
    if (!spot) continue;
    taken.push(spot);
    drawn.push(svg("text", { x: spot.left + 1, y: spot.top + 11, class: strong ? "halo strong" : "halo" }, text));
  }
  return drawn;
}

// Calls `draw(width)` now, when the element's width changes, and whenever the function it returns is called.
function responsive(element, draw) {
  let last = 0;
  const now = () => {
    last = element.clientWidth;
    if (last > 0) draw(last);
  };
  new ResizeObserver(() => { if (element.clientWidth !== last) now(); }).observe(element);
  return now;
}
