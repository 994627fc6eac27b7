// Sorts the tables, draws the charts, and copies commands. Nothing is fetched.
"use strict";

const NAMESPACE = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];
const CURVES = [["score", "Score", "%"], ["train_loss", "Training loss", ""], ["rate", "Steps with an ascent", "%"], ["grad_norm", "Gradient norm", ""]];
const MEASURES = { grad_norm: "gradient norm, mean over the epoch’s steps", perturbations: "perturbations in the epoch" };

// -- small tools

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(NAMESPACE, name);
  for (const [key, value] of Object.entries(attributes)) if (value !== "") made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const color = (setting) => `var(--c${setting % 8})`;
const dash = (setting) => DASHES[Math.floor(setting / 8) % DASHES.length];
const number = (value) => (value === null ? "none" : Number(value.toPrecision(4)).toLocaleString("en"));

// Round numbers that cover the values: about `count` of them.
function ticks(values, count = 5) {
  const low = Math.min(...values), high = Math.max(...values), span = high - low || Math.abs(high) || 1;
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => span / size <= count);
  const first = Math.floor(low / step), last = Math.max(Math.ceil(high / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
}

const scale = (from, to, start, end) => (value) => start + ((value - from) / (to - from || 1)) * (end - start);

// An empty chart with axes; `x` and `y` place values in it.
function chart(width, height, xs, ys, xName, label) {
  const xTicks = ticks(xs, width < 420 ? 4 : 6), yTicks = ticks(ys), left = 48, bottom = height - 40;
  const x = scale(xTicks[0], xTicks.at(-1), left, width - 12), y = scale(yTicks[0], yTicks.at(-1), bottom, 10);
  const axis = shape("g", { class: "axis", "aria-hidden": "true" });
  for (const tick of yTicks) {
    axis.append(shape("line", { class: "grid", x1: left, x2: width - 12, y1: y(tick), y2: y(tick) }));
    axis.append(shape("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of xTicks) axis.append(shape("text", { x: x(tick), y: bottom + 16, "text-anchor": "middle" }, number(tick)));
  axis.append(shape("text", { x: width - 12, y: height - 6, "text-anchor": "end" }, xName));
  return { svg: shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": label }, axis), x, y, bottom, from: yTicks[0] };
}

// A figure that is drawn again when its width changes, and for paper, where it is `paper` wide.
function figure(title, paper, draw) {
  const note = element("small"), caption = element("figcaption", {}, title, note), made = element("figure", {}, caption);
  const redraw = (width = Math.max(280, Math.min(960, made.clientWidth || 600))) => {
    const [svg, remark] = draw(width);
    note.textContent = remark;
    made.replaceChildren(caption, svg);
  };
  let drawn = 0;
  new ResizeObserver(() => {
    if (made.clientWidth === drawn || matchMedia("print").matches || made.contains(document.activeElement)) return;
    drawn = made.clientWidth;
    redraw();
  }).observe(made);
  addEventListener("beforeprint", () => redraw(paper));
  addEventListener("afterprint", () => redraw());
  return [made, () => redraw()];
}

const axisRemark = (from) => (from === 0 ? "" : `axis from ${number(from)}`);

// -- charts of a benchmark

function legend(benchmark, shown, redraw) {
  const made = element("fieldset", { class: "legend" }, element("legend", {}, "Shown"));
  benchmark.settings.forEach((name, setting) => {
    const box = element("input", { type: "checkbox", checked: "" });
    const line = shape("line", { x1: 0, x2: 28, y1: 6, y2: 6, stroke: color(setting), "stroke-width": 3, "stroke-dasharray": dash(setting) });
    const swatch = shape("svg", { viewBox: "0 0 28 12", style: "width:28px", "aria-hidden": "true" }, line);
    box.addEventListener("change", () => {
      if (box.checked) shown.add(setting); else shown.delete(setting);
      redraw();
    });
    made.append(element("label", {}, box, swatch, name));
  });
  return made;
}

// Each run leads to its place on the page; by the Tab key in the first chart only, for they are the same runs in all.
function runLink(benchmark, run, text, tab, ...children) {
  const label = `${benchmark.settings[run.setting]}, seed ${run.seed}${run.state === "done" ? "" : ` (${run.state})`}: ${text}`;
  return shape("a", { href: `#run-${run.id}`, "aria-label": label, tabindex: tab ? 0 : -1 }, shape("title", {}, label), ...children);
}

function curveChart(benchmark, shown, [key, title, unit], tab) {
  return figure(unit ? `${title}, ${unit}` : title, 340, (width) => {
    const runs = benchmark.runs.filter((run) => shown.has(run.setting) && run[key].some((value) => value !== null));
    const values = runs.flatMap((run) => run[key].filter((value) => value !== null)), epochs = runs.flatMap((run) => run.epoch);
    const { svg, x, y, from } = chart(width, 240, epochs.length ? [0, ...epochs] : [0, 1], values.length ? values : [0, 1], "epoch", title);
    for (const run of runs) {
      const points = run[key].flatMap((value, i) => (value === null ? [] : [`${x(run.epoch[i]).toFixed(1)},${y(value).toFixed(1)}`]));
      const look = { stroke: color(run.setting), "stroke-dasharray": dash(run.setting) };
      const line = points.length > 1 ? shape("polyline", { class: "curve", points: points.join(" "), ...look })
        : shape("circle", { cx: points[0].split(",")[0], cy: points[0].split(",")[1], r: 4, fill: color(run.setting) });
      const reach = shape("polyline", { class: "reach", points: points.join(" ") });
      const last = `${title.toLowerCase()} ${number(run[key].at(-1))}${unit && " " + unit} after epoch ${run.epoch.at(-1)}`;
      svg.append(runLink(benchmark, run, last, tab, line, reach));
    }
    return [svg, key === "score" ? [`on the ${benchmark.split}`, axisRemark(from)].filter(Boolean).join("; ") : axisRemark(from)];
  });
}

function speedChart(benchmark, shown) {
  return figure("Score against speed, finished runs", 680, (width) => {
    const runs = benchmark.runs.filter((run) => shown.has(run.setting) && "x" in run);
    const means = benchmark.means.filter((mean) => shown.has(mean.setting));
    const xs = runs.map((run) => run.x), ys = runs.map((run) => run.y);
    const { svg, x, y, from } = chart(width, 300, xs.length ? xs : [0, 1], ys.length ? ys : [0, 1], "images/s", "Score against speed");
    const corner = benchmark.front.map((setting) => benchmark.means.find((mean) => mean.setting === setting));
    if (corner.length > 1) svg.append(shape("path", { class: "front", d: corner.map((mean, i) => `${i ? `V${y(mean.y)}H` : `M${x(mean.x)},${y(mean.y)}H`}${x(mean.x)}`).join("") }));
    for (const run of runs) {
      const dot = shape("circle", { cx: x(run.x), cy: y(run.y), r: 6, fill: color(run.setting), "fill-opacity": 0.4, stroke: color(run.setting) });
      svg.append(runLink(benchmark, run, `${number(run.y)} % at ${number(run.x)} images/s`, true, dot));
    }
    let above = -Infinity;
    for (const mean of [...means].sort((one, other) => y(one.y) - y(other.y))) {
      const right = x(mean.x) > width * 0.6, at = Math.max(y(mean.y) + 4, above + 14);
      above = at;
      if (mean.n > 1) svg.append(shape("path", { d: `M${x(mean.x)},${y(mean.y) - 8}l8,8l-8,8l-8,-8z`, fill: color(mean.setting) }));
      const bold = benchmark.front.includes(mean.setting) ? 700 : 400;
      svg.append(shape("text", { class: "label", x: x(mean.x) + (right ? -11 : 11), y: at, "text-anchor": right ? "end" : "start", "font-weight": bold }, benchmark.settings[mean.setting]));
    }
    const front = benchmark.front.length ? `${corner.length > 1 ? "dashed and " : ""}bold: the Pareto front of the means` : benchmark.hardware.length > 1 ? "several machines: no front" : "";
    const diamonds = means.some((mean) => mean.n > 1) ? "diamonds: means over seeds" : "";
    return [svg, [diamonds, front, `score ${axisRemark(from) || "axis from 0"}, speed axis as marked`].filter(Boolean).join("; ")];
  });
}

// Dark to bright, of even steps in lightness (viridis).
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function ramp(share) {
  const at = Math.max(0, Math.min(1, share)) * (RAMP.length - 1), i = Math.min(Math.floor(at), RAMP.length - 2);
  return `rgb(${RAMP[i].map((low, c) => Math.round(low + (RAMP[i + 1][c] - low) * (at - i))).join(",")})`;
}

function heatmap(benchmark) {
  const runs = benchmark.runs.filter((run) => run.layers.names.length);
  if (!runs.length) return "";
  const pick = element("select", { "aria-label": "Run" }, ...runs.map((run, i) => element("option", { value: i }, `${benchmark.settings[run.setting]}, seed ${run.seed}`)));
  const measure = element("select", { "aria-label": "Measure" }, ...Object.entries(MEASURES).map(([key, name]) => element("option", { value: key }, name)));
  const log = element("input", { type: "checkbox" }), readout = element("p", { class: "readout", "aria-live": "polite" }, "Point at a cell, or move with the arrow keys.");
  const [made, redraw] = figure("Layers over training", 680, (width) => drawLayers(runs[pick.value], measure.value, log.checked, width, readout));
  log.checked = true;
  measure.addEventListener("change", () => { log.checked = measure.value === "grad_norm"; });
  for (const control of [pick, measure, log]) control.addEventListener("change", redraw);
  const first = runs.findIndex((run) => run.layers.perturbations.some((row) => new Set(row).size > 1));
  pick.value = Math.max(first, 0);
  const lead = element("a", { href: "#" }, "its configuration and command");
  lead.addEventListener("click", () => lead.setAttribute("href", `#run-${runs[pick.value].id}`));
  const controls = element("div", { class: "controls" }, pick, measure, element("label", {}, log, " logarithmic"), lead);
  return element("div", {}, controls, made, readout);
}

function drawLayers(run, key, log, width, readout) {
  const { names, epochs } = run.layers, values = run.layers[key], flat = values.flat().filter((value) => value !== null);
  const positive = flat.filter((value) => value > 0), high = Math.max(...flat), low = log && positive.length ? Math.min(...positive) : 0;
  const share = (value) => (log && positive.length ? Math.log(value / low) / (Math.log(high / low) || 1) : value / (high || 1));
  const left = Math.min(150, 12 + 6.2 * Math.max(...names.map((name) => name.length))), cell = (width - left - 4) / epochs.length, row = 15;
  const bottom = names.length * row, height = bottom + 62;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, "shape-rendering": "crispEdges", tabindex: 0, role: "group", "aria-label": `Layers over training: ${MEASURES[key]}. Move with the arrow keys.` });
  names.forEach((name, i) => svg.append(shape("text", { x: left - 6, y: i * row + 11, "text-anchor": "end", style: "font-size:10px" }, name)));
  values.forEach((line, i) => line.forEach((value, j) => {
    if (value !== null) svg.append(shape("rect", { x: (left + j * cell).toFixed(2), y: i * row, width: (cell + 0.3).toFixed(2), height: row, fill: ramp(value > 0 || !log ? share(value) : 0) }));
  }));
  const every = Math.ceil(epochs.length / (width < 420 ? 6 : 12));
  epochs.forEach((epoch, j) => { if (j % every === 0) svg.append(shape("text", { x: left + (j + 0.5) * cell, y: bottom + 14, "text-anchor": "middle", style: "font-size:11px" }, epoch)); });
  svg.append(shape("text", { x: width - 4, y: bottom + 28, "text-anchor": "end" }, "epoch"));
  for (let i = 0; i < 40; i++) svg.append(shape("rect", { x: left + i * 3, y: bottom + 34, width: 3.2, height: 10, fill: ramp(i / 39) }));
  svg.append(shape("text", { x: left, y: bottom + 57, "text-anchor": "start" }, number(low)));
  svg.append(shape("text", { x: left + 120, y: bottom + 57, "text-anchor": "end" }, number(high)));
  const cursor = shape("rect", { class: "cursor", width: Math.max(cell, 2), height: row, visibility: "hidden" });
  svg.append(cursor);
  let at = [0, 0];
  const show = (i, j) => {
    at = [Math.max(0, Math.min(names.length - 1, i)), Math.max(0, Math.min(epochs.length - 1, j))];
    cursor.setAttribute("x", left + at[1] * cell);
    cursor.setAttribute("y", at[0] * row);
    cursor.setAttribute("visibility", "visible");
    readout.textContent = `${names[at[0]]}, epoch ${epochs[at[1]]}: ${number(values[at[0]][at[1]])}`;
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), unit = width / box.width;
    const i = Math.floor(((event.clientY - box.top) * unit) / row), j = Math.floor(((event.clientX - box.left) * unit - left) / cell);
    if (i >= 0 && i < names.length && j >= 0 && j < epochs.length) show(i, j);
  });
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    show(at[0] + move[0], at[1] + move[1]);
  });
  return [svg, `${MEASURES[key]}; colours ${log ? "logarithmic, darkest also for 0" : "from 0"}`];
}

// -- the page

function sortable(table) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = element("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (one, other) => {
        const [a, b] = [value(one), value(other)];
        if (!a || !b) return (a ? 0 : 1) - (b ? 0 : 1); // empty cells stay at the end
        return sign * (isNaN(a) || isNaN(b) ? a.localeCompare(b, "en", { numeric: true }) : a - b);
      };
      body.append(...[...body.rows].sort(compare));
    });
  });
}

function copyable(command) {
  const button = element("button", { type: "button" }, "Copy command");
  button.addEventListener("click", async () => {
    const text = command.querySelector("code");
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch { // a page opened as a file may not: select it instead
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
  });
  command.append(button);
}

function go() {
  const place = location.hash.startsWith("#run-") && document.getElementById(location.hash.slice(1));
  if (!place) return;
  place.querySelector("details").open = true;
  place.focus();
}

const benchmarks = JSON.parse(document.getElementById("data").textContent);
for (const part of document.querySelectorAll("[data-benchmark]")) {
  const benchmark = benchmarks[part.dataset.benchmark], shown = new Set(benchmark.settings.keys());
  const curves = CURVES.map((kind, i) => curveChart(benchmark, shown, kind, i === 0)), speed = speedChart(benchmark, shown);
  const redraw = () => [...curves, speed].forEach(([, again]) => again());
  const place = (name, ...made) => part.querySelector(`[data-chart=${name}]`).append(...made);
  place("legend", legend(benchmark, shown, redraw));
  place("curves", element("div", { class: "panels" }, ...curves.map(([made]) => made)));
  place("speed", benchmark.means.length ? speed[0] : "");
  place("heatmap", heatmap(benchmark));
}
document.querySelectorAll("table").forEach(sortable);
document.querySelectorAll(".command").forEach(copyable);
addEventListener("hashchange", go);
go();
