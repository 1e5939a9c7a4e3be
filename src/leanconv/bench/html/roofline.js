// Operations a second against operations a byte, one point a layer, under the roof of peak and bandwidth.

const FASTEST = "fastest";
const roofline = { pilot: FASTEST };

function drawRoofline(wide) {
  const figure = byId("roofline");
  const chosen = timed().filter((r) => (roofline.pilot === FASTEST ? r.best : r.contestant === Number(roofline.pilot)));
  const peak = data.peaks[state.threads];
  const bandwidth = data.bandwidths[state.threads];
  if (!chosen.length || !peak) {
    figure.replaceChildren(el("p", { class: "note" }, "Nothing was measured here with this choice."));
    return;
  }
  const tall = Math.round(Math.min(440, Math.max(300, wide * 0.48)));
  const box = { left: wide < 500 ? 42 : 56, right: wide - 12, top: 26, bottom: tall - 44 };
  const intensity = chosen.map((r) => layers[r.layer].intensity);
  const ridge = bandwidth ? peak / bandwidth : null;
  const left = Math.min(...intensity, ridge ?? Infinity) / 1.6;
  const right = Math.max(...intensity, ridge ?? 0) * 1.6;
  const bottom = Math.min(...chosen.map((r) => r.gflops), peak / 4) / 1.3;
  const top = Math.max(...chosen.map((r) => r.gflops), peak) * 1.25;
  const sx = scale(left, right, box.left, box.right);
  const sy = scale(bottom, top, box.bottom, box.top);
  const start = bandwidth ? Math.max(left, bottom / bandwidth) : left;
  const roof = bandwidth && ridge > start
    ? `M${sx(start)},${sy(start * bandwidth)}L${sx(ridge)},${sy(peak)}H${box.right}`
    : `M${box.left},${sy(peak)}H${box.right}`;
  const points = chosen.map((r) => ({ r, x: sx(layers[r.layer].intensity), y: sy(r.gflops) }));
  // The layers that are furthest below the roof are named first.
  const limit = (r) => Math.min(peak, bandwidth ? layers[r.layer].intensity * bandwidth : peak);
  const order = [...points].sort((a, b) => a.r.gflops / limit(a.r) - b.r.gflops / limit(b.r));
  const roofText = `FMA peak ${digits(peak, 3)} GFLOP/s`;
  const text = { x: box.right, y: sy(peak) - 7 };
  // The roof's name is no place for another label.
  const guard = [];
  for (let x = box.right - width(roofText); x <= box.right; x += 10) guard.push({ x, y: text.y - 4 });
  const size = (value) => String(Number(value.toPrecision(3)));
  figure.replaceChildren(
    svg("svg", { height: tall, viewBox: `0 0 ${wide} ${tall}`, role: "img",
      "aria-label": `Roofline, ${plural(chosen.length, "layer")}; the figures are in the table of all measurements` },
      ...decades(bottom, top).map((v) => [
        svg("line", { class: "grid", x1: box.left, x2: box.right, y1: sy(v), y2: sy(v) }),
        svg("text", { class: "axis", x: box.left - 8, y: sy(v) + 4, "text-anchor": "end" }, size(v)),
      ]),
      ...spaced(decades(left, right, 12), sx, size).map((v) => [
        svg("line", { class: "grid", x1: sx(v), x2: sx(v), y1: box.top, y2: box.bottom }),
        svg("text", { class: "axis", x: sx(v), y: box.bottom + 17, "text-anchor": "middle" }, size(v)),
      ]),
      svg("text", { class: "unit", x: 0, y: 12 }, "GFLOP/s"),
      svg("text", { class: "unit", x: box.right, y: tall - 6, "text-anchor": "end" }, "FLOPs a byte of image, weights and output"),
      svg("path", { class: "roof", d: roof }),
      ...points.map(({ r, x, y }) => withTip(
        svg("g", { transform: `translate(${x},${y})` }, svg("circle", { r: 9, class: "target" }), marker(r.contestant)),
        [...describe(r), `${digits(layers[r.layer].intensity, 3)} FLOPs a byte`], false)),
      svg("text", { class: "halo axis", ...text, "text-anchor": "end" }, roofText), // above the points, to be read
      ...labels(order.map(({ r, x, y }) => ({ x, y, text: layers[r.layer].short })), [...points, ...guard],
        { ...box, right: wide })),
    el("figcaption", {}, bandwidth
      ? `Memory: ${digits(bandwidth, 3)} GB/s measured; ${plural(state.threads, "thread")}.`
      : `The speed of memory was not measured in this run: the slope is missing. ${plural(state.threads, "thread")}.`));
}

const redrawRoofline = responsive(byId("roofline"), drawRoofline);

function startRoofline() {
  const entries = contestants.map((c, index) => [String(index), c.label]);
  options(byId("pilot"), [[FASTEST, "the fastest of each layer"], ...entries], (value) => {
    roofline.pilot = value;
    redrawRoofline();
  });
}
