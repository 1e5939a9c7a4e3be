// Header, controls, and the start of everything.

function redraw() {
  drawSummary();
  scatterLayers();
  redrawScatter();
  redrawBars();
  redrawRoofline();
  drawMatrix();
  drawRows();
}

function drawHeader() {
  byId("subtitle").textContent = data.subtitle;
  byId("facts").replaceChildren(...data.facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  byId("conditions").lastElementChild.replaceChildren(
    ...data.conditions.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
  byId("warning").textContent = data.warning;
  byId("warning").hidden = data.warning === "";
  byId("footnotes").textContent = data.footnotes;
}

function drawThreads() {
  byId("threads").append(...data.threads.map((count) => el("label", { class: "choice" },
    el("input", { type: "radio", name: "threads", value: count, checked: count === state.threads, "aria-label": plural(count, "thread"),
      onchange: () => { state.threads = count; redraw(); } }),
    el("span", { "aria-hidden": "true" }, String(count)))));
}

function drawSets() {
  const entries = [["", `all ${layers.length}`], ...sets.map((set) => [set, `${set} (${layers.filter((l) => l.set === set).length})`])];
  options(byId("set"), entries, (value) => { state.set = value; redraw(); });
  byId("set").parentElement.hidden = sets.length < 2;
}

function drawLegend() {
  const [summary, chips] = byId("legend").children;
  const count = () => { summary.textContent = `Contestants: ${contestants.length - state.hidden.size} of ${contestants.length}`; };
  const boxes = [];
  const show = (index, on) => { if (on) state.hidden.delete(index); else state.hidden.add(index); };
  const chip = (index) => {
    boxes[index] = el("input", { type: "checkbox", checked: true, onchange: (event) => { show(index, event.target.checked); count(); redraw(); } });
    const version = contestants[index].version;
    return el("label", { class: "chip", title: version ? `${contestants[index].label} ${version}` : null }, boxes[index], badge(index), contestants[index].label);
  };
  const group = (title, peer) => {
    const members = contestants.map((_, index) => index).filter((index) => contestants[index].peer === peer);
    if (!members.length) return [];
    const all = (on) => () => { for (const index of members) { show(index, on); boxes[index].checked = on; } count(); redraw(); };
    return [el("strong", {}, title, el("button", { type: "button", class: "small", onclick: all(true) }, "all"),
      el("button", { type: "button", class: "small", onclick: all(false) }, "none")), ...members.map(chip)];
  };
  chips.replaceChildren(...group("leanconv", false), ...group("Other libraries", true));
  count();
}

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const set = (theme) => {
    root.dataset.theme = theme;
    byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
    byId("theme").setAttribute("aria-label", theme === "dark" ? "Light colours" : "Dark colours");
  };
  set(dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => set(dark.matches ? "dark" : "light"));
  byId("theme").addEventListener("click", () => set(root.dataset.theme === "dark" ? "light" : "dark"));
}

startTheme();
drawHeader();
drawThreads();
drawSets();
drawLegend();
startScatter();
startBars();
startRoofline();
startTables();
redraw();
document.documentElement.dataset.ready = "yes";
