"use strict";
(() => {
const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SYMBOL = { depth: "L", width: "M", embed_dim: "D" };
const SIZES = Object.keys(SYMBOL);
const ROWS = 15;
const [RESOLVED, BELOW] = [0, 1];

// --- numbers ------------------------------------------------------------------------------------

// Columns that were unpacked, the latest used last.
const unpacked = new Map();
const MOST_UNPACKED = 250;

async function bytesOf(place) {
  const text = atob(page.columns[place]);
  const bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Bytes are shuffled: first all first bytes, then all second ones. A value keeps the upper four of
// the eight bytes of its number; the others are zero.
function numbers(bytes, size) {
  const count = bytes.length / size;
  const whole = new Uint8Array(8 * count);
  for (let byte = 0; byte < size; byte++) {
    const start = byte * count;
    for (let k = 0; k < count; k++) whole[8 * k + 8 - size + byte] = bytes[start + k];
  }
  return new Float64Array(whole.buffer);
}

function column(place, size) {
  let found = unpacked.get(place);
  if (found) {
    unpacked.delete(place);
  } else {
    found = bytesOf(place).then((bytes) => (size === 1 ? bytes : numbers(bytes, size)));
    if (unpacked.size >= MOST_UNPACKED) unpacked.delete(unpacked.keys().next().value);
  }
  unpacked.set(place, found);
  return found;
}
const values = (place) => column(place, 4);
const exact = (place) => column(place, 8);
const codes = (place) => column(place, 1);

function said(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e7 || size < 1e-4) {
    const [digits, power] = value.toExponential(page.digits - 1).split("e");
    return `${Number(digits)}e${Number(power)}`;
  }
  return String(Number(value.toPrecision(page.digits)));
}

// --- cells --------------------------------------------------------------------------------------

const pairs = new Map();

// What does not change with the step: sizes, variables, and the shape of each cell.
function pairOf(name) {
  if (!pairs.has(name)) pairs.set(name, readPair(name));
  return pairs.get(name);
}

async function readPair(name) {
  const pair = page.pairs[name];
  const read = async (part) => Object.fromEntries(await Promise.all(
    Object.entries(part).map(async ([key, place]) => [key, await exact(place)])));
  const [columns, variables] = await Promise.all([read(pair.columns), read(pair.variables)]);
  const shapes = new Map();
  const shape = new Int32Array(pair.count);
  const members = [];
  for (let i = 0; i < pair.count; i++) {
    const key = SIZES.map((size) => columns[size][i]).join();
    if (!shapes.has(key)) { shapes.set(key, shapes.size); members.push([]); }
    shape[i] = shapes.get(key);
    members[shape[i]].push(i);
  }
  return { ...pair, name, columns, variables, shape, members };
}

function predictedAt(pair, observable, k, i) {
  const amplitudes = (pair.observables[observable].amplitudes || [])[k];
  if (!amplitudes) return NaN;
  let square = 0;
  for (const [term, amplitude] of Object.entries(amplitudes)) {
    square += (amplitude * pair.variables[term][i]) ** 2;
  }
  return Math.sqrt(square);
}

// All cells of a pair, for one observable at one step; written into old rows where there are some.
async function cellsAt(pair, observable, k, old = []) {
  const parts = pair.observables[observable];
  const [value, second, state] = await Promise.all([
    values(parts.value[k]), values((parts.stderr || parts.reference)[k]), codes(parts.state[k])]);
  const squares = new Float64Array(pair.members.length);
  const counts = new Int32Array(pair.members.length);
  for (let i = 0; i < pair.count; i++) {
    if (state[i] > BELOW) continue;
    squares[pair.shape[i]] += value[i] ** 2;
    counts[pair.shape[i]]++;
  }
  const rows = old.length === pair.count ? old : [];
  for (let i = 0; i < pair.count; i++) {
    const shape = pair.shape[i];
    const predicted = predictedAt(pair, observable, k, i);
    rows[i] = Object.assign(rows[i] || {}, {
      i,
      depth: pair.columns.depth[i], width: pair.columns.width[i],
      embed_dim: pair.columns.embed_dim[i], seed: pair.columns.seed[i],
      parameters: pair.columns.parameters[i],
      weights: pair.columns.weights ? pair.columns.weights[i] : NaN,
      state: page.states[state[i]],
      value: value[i],
      stderr: parts.stderr ? second[i] : NaN,
      reference: parts.reference ? second[i] : NaN,
      rms: counts[shape] ? Math.sqrt(squares[shape] / counts[shape]) : NaN,
      seeds: counts[shape],
      predicted,
      ratio: value[i] / predicted,
    });
  }
  return rows;
}

// --- what is chosen -----------------------------------------------------------------------------

const choice = {
  pair: page.pairs["finite-dmft"] ? "finite-dmft" : Object.keys(page.pairs)[0],
  observable: "hidden",
  step: null,
  across: null,
  colour: "embed_dim",
  states: new Set(page.states),
  ranges: {},
  predictions: true,
  cell: null,
  sort: "place",
  falling: false,
  page: 0,
};
let pair = null; // the pair that is shown
let rows = []; // all its cells
let listed = []; // those in the table
let embedded = null; // the panels
let view = null;
let brush = {};
let panelsDrawn = "";

const ACROSS = {
  ratio: "D/(LM)", parameters: "P = LMD", depth: "L, depth", width: "M, width",
  embed_dim: "D, embedding dimension", weights: "weights",
};

function variableOf(name) {
  return name === "ratio" ? pair.variables["D/(LM)"] : pair.columns[name];
}

function canBeAcross(name) {
  if (SIZES.includes(name)) return pair.sizes.includes(name);
  return pair.sizes.length === SIZES.length && Boolean(variableOf(name));
}

function sizesOf(name) {
  return [...new Set(pair.columns[name])].sort((a, b) => a - b);
}

function fill(select, entries, value) {
  select.replaceChildren(...entries.map(([key, words, disabled]) => {
    const option = new Option(words, key);
    option.disabled = Boolean(disabled);
    return option;
  }));
  select.value = value;
}

function pairWords(name) {
  const [first, second] = name.split("-");
  return `${page.names[first]} \u2013 ${page.names[second]}`;
}

async function choosePair(name) {
  const before = pair && choice.cell !== null ? rows[choice.cell] : null;
  pair = await pairOf(name);
  choice.pair = name;
  const observables = Object.keys(pair.observables);
  if (!observables.includes(choice.observable)) choice.observable = observables[0];
  fill($("pair"), Object.keys(page.pairs).map((key) => [key, pairWords(key)]), name);
  fill($("observable"), observables.map((key) => [key, page.labels[key]]), choice.observable);
  if (!canBeAcross(choice.across)) {
    choice.across = canBeAcross("ratio") ? "ratio" : pair.sizes[0];
  }
  fill($("across"), Object.entries(ACROSS).map(([key, words]) =>
    [key, canBeAcross(key) ? words : `${words} (infinite here)`, !canBeAcross(key)])
    .filter(([key]) => key !== "weights" || pair.columns.weights), choice.across);
  const last = pair.steps.length - 1;
  if (choice.step === null || choice.step > last) choice.step = last;
  $("step").max = last;
  $("step").value = choice.step;
  for (const fieldset of document.querySelectorAll(".range")) {
    const size = fieldset.dataset.size;
    const found = sizesOf(size);
    const own = choice.ranges[size] || {};
    for (const select of fieldset.querySelectorAll("select")) {
      const end = select.dataset.end;
      const edge = end === "low" ? found[0] : found[found.length - 1];
      const value = found.includes(own[end]) ? own[end] : edge;
      fill(select, found.map((number) => [number, number || "\u221e"]), value);
      select.disabled = !pair.sizes.includes(size);
    }
    readRange(fieldset);
  }
  choice.cell = null;
  if (before) {
    const same = [...SIZES, "seed"];
    const place = [...Array(pair.count).keys()].find((i) =>
      same.every((key) => pair.columns[key][i] === before[key]));
    choice.cell = place === undefined ? null : place;
  }
}

function readRange(fieldset) {
  const [low, high] = fieldset.querySelectorAll("select");
  choice.ranges[fieldset.dataset.size] = { low: Number(low.value), high: Number(high.value) };
}

function fillColours() {
  const isPredicted = rows.some((row) => row.ratio > 0);
  const entries = [
    ...SIZES.map((size) => [size, ACROSS[size], !pair.sizes.includes(size)]),
    ["parameters", ACROSS.parameters, pair.sizes.length < SIZES.length],
    ["seed", "seed"],
    ["ratio", "measured / predicted", !isPredicted],
  ];
  const usable = entries.filter(([, , disabled]) => !disabled).map(([key]) => key);
  const wanted = usable.includes(choice.colour) ? choice.colour : usable[0];
  fill($("colour"), entries, wanted);
  return wanted;
}

// One refresh at a time; what is chosen meanwhile is shown by one more.
let refreshing = null;
let isStale = false;
function refresh() {
  isStale = true;
  refreshing = refreshing || (async () => {
    while (isStale) {
      isStale = false;
      await refreshOnce();
    }
    refreshing = null;
  })();
  return refreshing;
}

async function refreshOnce() {
  if (!pair || pair.name !== choice.pair) await choosePair(choice.pair);
  rows = await cellsAt(pair, choice.observable, choice.step, rows);
  const colour = fillColours();
  const across = variableOf(choice.across);
  for (const row of rows) {
    row.x = across[row.i];
    row.c = row[colour];
    row.inside = Number(SIZES.every((size) =>
      row[size] >= choice.ranges[size].low && row[size] <= choice.ranges[size].high));
  }
  const step = pair.steps[choice.step];
  $("step-said").textContent = String(step);
  $("step").setAttribute("aria-valuetext", `step ${step}`);
  if (choice.cell === null) choice.cell = firstCell();
  await drawPanels(colour);
  list();
  await showCell();
}

// The largest shape of which something is known.
function firstCell() {
  const good = rows.filter((row) => row.state === "resolved");
  const last = (good.length ? good : rows).at(-1);
  return pair.members[pair.shape[last.i]].find((i) => rows[i].state === last.state);
}

// --- panels -------------------------------------------------------------------------------------

function colourOf(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const isDark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const [ink, soft, line] = ["--ink", "--soft", "--line"].map(colourOf);
  const font = "system-ui, DejaVu Sans, sans-serif";
  return {
    background: "transparent", font,
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: soft, tickColor: soft,
      titleFontWeight: 600, labelFontSize: 11, titleFontSize: 12, gridOpacity: 0.6 },
    legend: { labelColor: ink, titleColor: ink, labelFontSize: 11, titleFontSize: 11 },
    view: { stroke: line },
  };
}

function everyLayer(node, visit) {
  if (Array.isArray(node)) {
    node.forEach((part) => everyLayer(part, visit));
  } else if (node && typeof node === "object") {
    if (node.encoding) visit(node.encoding, node);
    Object.values(node).forEach((part) => everyLayer(part, visit));
  }
}

const MANY = 1500; // cells of which smaller marks are drawn
const STYLES = { edge: "--bad", chosen: "--ring", predicted: "--predicted" };

function panelSpec(colour) {
  const spec = structuredClone(page.specs.panels[pair.name]);
  const room = Math.max($("panels").clientWidth, 880) - 150;
  const gaps = 12 * (spec.hconcat.length - 1);
  const first = Math.max(220, Math.round((room - gaps) * (1.7 / (spec.hconcat.length + 0.7))));
  const other = Math.floor((room - gaps - first) / Math.max(1, spec.hconcat.length - 1));
  spec.hconcat.forEach((panel, k) => {
    panel.width = k ? other : first;
    panel.height = 232;
  });
  const scheme = isDark.matches
    ? { name: "viridis", extent: [0.25, 1] } : { name: "viridis", extent: [0, 0.88] };
  const isRatio = colour === "ratio";
  everyLayer(spec.hconcat, (encoding, layer) => {
    if (layer.data.name === "cells" && rows.length > MANY) layer.mark.size = 12;
    if (STYLES[layer.mark.style]) layer.mark.color = colourOf(STYLES[layer.mark.style]);
    if (encoding.x) {
      const name = encoding.x.field === "x" ? choice.across : encoding.x.field;
      encoding.x.axis.format = SIZES.includes(name) ? "d" : name === "ratio" ? "~g" : "~s";
      if (SIZES.includes(name)) encoding.x.axis.values = sizesOf(name);
      if (encoding.x.field === "x") encoding.x.title = ACROSS[name];
    }
    if (encoding.y && encoding.y.title === "value") {
      encoding.y.title = "distance or loss";
    }
    if (encoding.color && encoding.color.field === "c") {
      encoding.color.title = isRatio ? ["measured /", "predicted"]
        : colour === "seed" ? "seed" : colour === "parameters" ? "P" : SYMBOL[colour];
      encoding.color.legend = { gradientLength: 190, tickCount: 5, format: "~s" };
      encoding.color.scale = isRatio
        ? { type: "log", scheme: isDark.matches ? "blueorange" : "redyellowblue", domainMid: 1 }
        : { type: colour === "seed" ? "linear" : "log", scheme };
      if (isRatio) encoding.color.legend.format = ".3~g";
    }
  });
  return { ...spec, datasets: panelRows() };
}

function isShown(row) {
  return choice.states.has(row.state);
}

function isSelected(row) {
  return row.inside === 1 && Object.entries(brush).every(([field, [a, b]]) =>
    row[field] >= Math.min(a, b) && row[field] <= Math.max(a, b));
}

async function newView(spec, element) {
  const made = await vegaEmbed(element, spec, {
    mode: "vega-lite", actions: false, renderer: "canvas", hover: false, defaultStyle: false,
    config: theme(), tooltip: showTip, logLevel: 1,
  });
  return made;
}

async function drawPanels(colour) {
  const drawn = JSON.stringify([
    pair.name, choice.across, colour, isDark.matches, $("panels").clientWidth]);
  if (drawn === panelsDrawn) return fillPanels();
  if (embedded) embedded.finalize();
  brush = {};
  panelsDrawn = drawn;
  embedded = await newView(panelSpec(colour), $("panels"));
  view = embedded.view;
  view.addSignalListener("brush", (name, value) => {
    brush = value || {};
    soon(list);
  });
  view.addEventListener("click", (event, item) => {
    if (item && item.datum && item.datum.i !== undefined) chooseCell(item.datum.i);
  });
}

// The data sets of the panels: which rows, and what of them. Cells without a number have no field
// for it.
const bare = ({ i, x, c, state, inside, depth, width, embed_dim, parameters }) =>
  ({ i, x, c, state, inside, depth, width, embed_dim, parameters });
const DRAWN = {
  cells: (row) => ({ ...bare(row), value: row.value }),
  edge: bare,
  predicted: ({ i, x, predicted }) => ({ i, x, value: predicted }),
};

function drawnRows() {
  const shown = rows.filter(isShown);
  const shapes = choice.predictions ? pair.members.map(([i]) => rows[i]) : [];
  return {
    cells: shown.filter((row) => row.value > 0),
    edge: shown.filter((row) => !(row.value > 0)),
    predicted: shapes.filter((row) => row.predicted > 0),
  };
}

function panelRows() {
  const found = Object.entries(drawnRows()).map(([name, some]) => [name, some.map(DRAWN[name])]);
  return { ...Object.fromEntries(found), chosen: chosenRows() };
}

function fillPanels() {
  for (const [name, some] of Object.entries(drawnRows())) put(name, some);
  view.data("chosen", chosenRows());
  return view.runAsync();
}

// Where the same cells are there as before they are changed in place: their marks stay.
const CHANGING = ["x", "c", "value", "state", "inside"];
function put(name, some) {
  const old = view.data(name);
  if (!old.length || old.length !== some.length || old.some((row, k) => row.i !== some[k].i)) {
    view.data(name, some.map(DRAWN[name]));
    return;
  }
  const change = emptyChange(name);
  for (const field of CHANGING.filter((key) => key in old[0])) {
    const source = name === "predicted" && field === "value" ? "predicted" : field;
    if (old.some((row, k) => row[field] !== some[k][source])) {
      change.modify(() => true, field, (row) => rows[row.i][source]);
    }
  }
  view.change(name, change);
}

// The bundle of the libraries gives vegaEmbed alone, not vega.changeset: a view makes one whenever
// it inserts, and hands it to its own pulse.
function emptyChange(name) {
  let made = null;
  view.pulse = (source, change) => { made = change; return view; };
  view.insert(name, []);
  delete view.pulse;
  return made;
}

function chosenRows() {
  const row = rows[choice.cell];
  if (!row || !isShown(row)) return [];
  const { x, value, depth, width, embed_dim, parameters } = row;
  return [{ x, depth, width, embed_dim, parameters, ...(value > 0 ? { value } : {}) }];
}

const waiting = new Map();
function soon(work) {
  clearTimeout(waiting.get(work));
  waiting.set(work, setTimeout(work, 60));
}

// --- facts of a cell ----------------------------------------------------------------------------

const size = (value) => (value ? String(value) : "\u221e");

function facts(row) {
  const found = [
    ...SIZES.map((name) => [SYMBOL[name], size(row[name])]),
    ["seed", `${row.seed}`],
    ["state", row.state.replace("_", " ")],
    [choice.observable === "loss" ? `loss, ${page.names[pair.first]}` : "value", said(row.value)],
  ];
  if (row.parameters) found.splice(3, 0, ["P", said(row.parameters)]);
  if (choice.observable === "loss") {
    found.push([`loss, ${page.names[pair.second]}`, said(row.reference)]);
  } else {
    found.push(
      ["standard error", said(row.stderr)],
      [`RMS of ${row.seeds} seed${row.seeds === 1 ? "" : "s"}`, said(row.rms)],
      ["predicted", said(row.predicted)],
      ["value / predicted", said(row.ratio)]);
  }
  return found;
}

function describe(list, entries) {
  list.replaceChildren(...entries.flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}

function showTip(handler, event, item, value) {
  const tip = $("tip");
  if (value === null || value === undefined || value === "") {
    tip.hidden = true;
    return;
  }
  const entries = typeof value === "object" ? Object.entries(value) : facts(rows[Number(value)]);
  const inside = document.createElement("dl");
  describe(inside, entries);
  tip.replaceChildren(inside);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
}

// --- one cell -----------------------------------------------------------------------------------

function chooseCell(i) {
  choice.cell = i;
  view.data("chosen", chosenRows()).runAsync();
  markRow();
  return showCell();
}

function nameOf(row) {
  return [...SIZES.map((name) => `${SYMBOL[name]} = ${size(row[name])}`), `seed ${row.seed}`]
    .join(", ");
}

let showing = Promise.resolve();
function showCell() {
  showing = showing.then(showCellOnce);
  return showing;
}

async function showCellOnce() {
  const row = rows[choice.cell];
  $("previous").disabled = $("next").disabled = !listed.length;
  if (!row) return;
  const now = pair;
  const members = now.members[now.shape[row.i]];
  const [losses, steps, depths] = await Promise.all([
    lossLines(now, row.i, members), stepLines(now, row.i, members), depthLines(now, row.i, members)]);
  $("cell-title").textContent = nameOf(row);
  $("reference-said").textContent = page.names[now.second];
  describe($("facts"), facts(row));
  await Promise.all([drawLines("losses", losses), drawLines("steps", steps), drawLines("depths", depths)]);
}

// Steps of one column for some cells: an array for each of them.
async function overSteps(places, cells) {
  const columns = await Promise.all(places.map(values));
  return cells.map((i) => columns.map((column) => column[i]));
}

function lineOf(line, part, xs, ys) {
  return xs.map((x, k) => ({ line, part, x, y: ys[k] })).filter((row) => Number.isFinite(row.y));
}

// Of a cell itself and, before it so that it is drawn above them, of the other seeds of its shape.
function seedLines(i, members, xs, curves) {
  const others = members.flatMap((other, k) =>
    other === i ? [] : lineOf("others", `seed ${k}`, xs, curves[k]));
  return [...others, ...lineOf("this", "this", xs, curves[members.indexOf(i)])];
}

async function lossLines(now, i, members) {
  const parts = now.observables.loss;
  if (!parts) return { why: "The losses of these networks and limits are not there." };
  const [curves, limits] = await Promise.all([
    overSteps(parts.value, members), overSteps(parts.reference, [i])]);
  return {
    title: "Loss over steps",
    rows: [...lineOf("limit", "limit", now.steps, limits[0]),
      ...seedLines(i, members, now.steps, curves)],
  };
}

async function stepLines(now, i, members) {
  const observable = choice.observable === "loss" ? "hidden" : choice.observable;
  const parts = now.observables[observable];
  const [curves, stderr] = await Promise.all([
    overSteps(parts.value, members), overSteps(parts.stderr, [i])]);
  const predicted = now.steps.map((step, k) => predictedAt(now, observable, k, i));
  const lines = [...lineOf("predicted", "predicted", now.steps, predicted),
    ...seedLines(i, members, now.steps, curves)].filter((row) => row.y > 0);
  // A standard error far below would press the other lines together.
  const least = Math.min(...lines.map((row) => row.y)) / 20;
  return {
    title: `Distance of ${page.labels[observable]}, over steps`,
    note: predicted.some((value) => value > 0) ? "" : ` (not predicted: ${parts.why})`,
    rows: [...lineOf("stderr", "stderr", now.steps, stderr[0]).filter((row) => row.y > least),
      ...lines],
  };
}

async function depthLines(now, i, members) {
  const profile = now.profile;
  if (!profile) return { why: "errors.zarr has no distances over depth." };
  // The kept step that is nearest.
  const nearest = profile.steps.reduce((best, place, k) =>
    Math.abs(place - choice.step) <= Math.abs(profile.steps[best] - choice.step) ? k : best, 0);
  const cut = (column, k, points) => Array.from(column.subarray(k * points, (k + 1) * points));
  const [s, column] = await Promise.all([values(profile.s), values(profile.value[nearest])]);
  const xs = cut(s, i, profile.points);
  const curves = members.map((k) => cut(column, k, profile.points));
  const lines = seedLines(i, members, xs, curves);
  const place = profile.predicted[nearest];
  if (place !== null) {
    const law = cut(await values(place), i, profile.predicted_s.length);
    lines.unshift(...lineOf("predicted", "predicted", profile.predicted_s, law));
  }
  return {
    title: `Distance of hidden states, RMS, over depth at step ${now.steps[profile.steps[nearest]]}`,
    rows: lines.filter((row) => row.y > 0 && Number.isFinite(row.x)),
  };
}

const detailViews = {};
async function drawLines(name, content) {
  const element = $(name);
  $(`${name}-said`).textContent = (content.title || "") + (content.note || "");
  if (!content.why && !content.rows.length) content.why = "No number to draw.";
  if (content.why) {
    if (detailViews[name]) detailViews[name].embedded.finalize();
    delete detailViews[name];
    const words = document.createElement("div");
    words.className = "none";
    words.textContent = content.why;
    element.replaceChildren(words);
    return;
  }
  const drawn = `${isDark.matches} ${element.clientWidth}`;
  if (!detailViews[name] || detailViews[name].drawn !== drawn) {
    if (detailViews[name]) detailViews[name].embedded.finalize();
    element.replaceChildren();
    const spec = structuredClone(page.specs.details[name]);
    const lines = ["--accent", "--others", "--limit", "--predicted", "--stderr"].map(colourOf);
    everyLayer(spec, (encoding) => {
      if (encoding.color) encoding.color.scale.range = lines;
    });
    const sized = { ...spec, width: Math.max(200, element.clientWidth), height: 190,
      autosize: { type: "fit", contains: "padding" }, datasets: { [name]: content.rows } };
    detailViews[name] = { drawn, embedded: await newView(sized, element) };
    return;
  }
  await detailViews[name].embedded.view.data(name, content.rows).runAsync();
}

// --- table --------------------------------------------------------------------------------------

function tableColumns() {
  const isLoss = choice.observable === "loss";
  return [
    ...SIZES.map((name) => [name, SYMBOL[name]]),
    ["seed", "seed"], ["parameters", "P"], ["state", "state"],
    ["value", isLoss ? `loss, ${page.names[pair.first]}` : "value"],
    ...(isLoss ? [["reference", `loss, ${page.names[pair.second]}`]] : [
      ["stderr", "standard error"], ["rms", "RMS of shape"], ["predicted", "predicted"],
      ["ratio", "value / predicted"]]),
  ];
}

function sorted(found) {
  if (choice.sort === "place") return found;
  const sign = choice.falling ? -1 : 1;
  const key = choice.sort;
  return found.sort((a, b) => {
    if (typeof a[key] === "string") return sign * a[key].localeCompare(b[key]) || a.i - b.i;
    const missing = Number.isNaN(a[key]) - Number.isNaN(b[key]);
    return missing || sign * (a[key] - b[key]) || a.i - b.i;
  });
}

function list() {
  const shown = rows.filter(isShown);
  listed = sorted(shown.filter(isSelected));
  choice.page = Math.min(choice.page, Math.max(0, Math.ceil(listed.length / ROWS) - 1));
  count(shown);
  drawHead();
  drawPage();
}

function count(shown) {
  const counts = Object.fromEntries(page.states.map((state) => [state, 0]));
  for (const row of rows) counts[row.state]++;
  for (const input of document.querySelectorAll("[data-state]")) {
    input.parentElement.querySelector(".count").textContent = counts[input.dataset.state];
  }
  const words = page.states.map((state) => `${counts[state]} ${state.replace("_", " ")}`).join(", ");
  const all = listed.length === shown.length;
  const text = `${pairWords(pair.name)}, ${page.labels[choice.observable]}, step `
    + `${pair.steps[choice.step]}: ${rows.length} cells: ${words}. ${shown.length} shown, `
    + (all ? "all selected." : `${listed.length} selected.`);
  if ($("counts").textContent !== text) $("counts").textContent = text;
}

let headDrawn = "";
function drawHead() {
  const columns = tableColumns();
  const drawn = JSON.stringify([columns, choice.sort, choice.falling]);
  if (drawn === headDrawn) return;
  const focused = document.activeElement && document.activeElement.dataset.key;
  headDrawn = drawn;
  const line = document.createElement("tr");
  for (const [key, words] of columns) {
    const head = document.createElement("th");
    head.scope = "col";
    if (key === "state") head.className = "words";
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.key = key;
    const arrow = choice.sort === key ? (choice.falling ? " \u25bc" : " \u25b2") : "";
    button.textContent = words + arrow;
    if (arrow) head.setAttribute("aria-sort", choice.falling ? "descending" : "ascending");
    button.addEventListener("click", () => {
      if (choice.sort !== key) [choice.sort, choice.falling] = [key, false];
      else if (!choice.falling) choice.falling = true;
      else [choice.sort, choice.falling] = ["place", false];
      choice.page = 0;
      list();
    });
    head.append(button);
    line.append(head);
  }
  const last = document.createElement("th");
  last.scope = "col";
  last.textContent = "trajectories";
  line.append(last);
  document.querySelector("#table thead").replaceChildren(line);
  if (focused) line.querySelector(`[data-key="${focused}"]`)?.focus();
}

function cellText(row, key) {
  if (key === "state") return row.state.replace("_", " ");
  if (SIZES.includes(key)) return size(row[key]);
  if (key === "parameters") return row.parameters ? said(row.parameters) : "\u221e";
  return said(row[key]);
}

function drawPage() {
  const columns = tableColumns();
  const start = choice.page * ROWS;
  const part = listed.slice(start, start + ROWS);
  const focused = document.activeElement && document.activeElement.dataset.cell;
  document.querySelector("#table tbody").replaceChildren(...part.map((row) => {
    const line = document.createElement("tr");
    line.dataset.row = row.i;
    for (const [key] of columns) {
      const text = document.createElement("td");
      if (key === "state") text.className = "words";
      text.textContent = cellText(row, key);
      line.append(text);
    }
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Show";
    button.dataset.cell = row.i;
    button.setAttribute("aria-label", `Show ${nameOf(row)}`);
    button.addEventListener("click", () => chooseCell(row.i));
    const last = document.createElement("td");
    last.append(button);
    line.append(last);
    return line;
  }));
  if (focused) document.querySelector(`[data-cell="${focused}"]`)?.focus();
  $("rows-said").textContent = listed.length
    ? `rows ${start + 1} to ${start + part.length} of ${listed.length}` : "no rows";
  $("first-page").disabled = $("page-back").disabled = choice.page === 0;
  $("last-page").disabled = $("page-on").disabled = start + ROWS >= listed.length;
  $("previous").disabled = $("next").disabled = !listed.length;
  $("save-table").disabled = !listed.length;
  markRow();
}

function markRow() {
  for (const line of document.querySelectorAll("#table tbody tr")) {
    line.classList.toggle("chosen", Number(line.dataset.row) === choice.cell);
  }
}

function turnTo(place) {
  choice.page = place;
  drawPage();
}

function walk(by) {
  const here = listed.findIndex((row) => row.i === choice.cell);
  const next = here < 0 ? 0 : (here + by + listed.length) % listed.length;
  turnTo(Math.floor(next / ROWS));
  chooseCell(listed[next].i);
}

// --- files --------------------------------------------------------------------------------------

const plainNumber = (value) =>
  (Number.isNaN(value) || value === undefined ? "" : String(Number(value.toPrecision(page.digits))));

function save(lines, words) {
  const name = `${page.experiment}-${words}.csv`.replace(/[^A-Za-z0-9._-]+/g, "_");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob(lines.map((line) => `${line.join()}\r\n`), { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const CELL_COLUMNS = [...SIZES, "seed", "parameters", "weights"];

function saveTable() {
  const parts = choice.observable === "loss"
    ? ["value", "reference"] : ["value", "stderr", "predicted"];
  const names = choice.observable === "loss" ? ["loss", "reference_loss"]
    : [choice.observable, `${choice.observable}_stderr`, `${choice.observable}_predicted`];
  const step = pair.steps[choice.step];
  save([
    ["pair", ...CELL_COLUMNS, "step", "state", ...names],
    ...listed.map((row) => [pair.name, ...CELL_COLUMNS.map((key) => exactText(row[key])), step,
      row.state, ...parts.map((part) => plainNumber(row[part]))]),
  ], `${pair.name}-${choice.observable}-step${step}`);
}

const exactText = (value) => (Number.isNaN(value) || value === undefined ? "" : String(value));

async function saveAll() {
  const now = pair;
  const distances = Object.keys(now.observables).filter((name) => name !== "loss");
  const head = ["pair", ...CELL_COLUMNS, "step"];
  for (const name of distances) head.push(name, `${name}_stderr`, `${name}_predicted`, `${name}_state`);
  head.push("loss", "reference_loss");
  const lines = [head];
  for (let k = 0; k < now.steps.length; k++) {
    const found = await Promise.all(distances.map((name) => cellsAt(now, name, k)));
    const losses = now.observables.loss ? await cellsAt(now, "loss", k) : null;
    for (let i = 0; i < now.count; i++) {
      const line = [now.name, ...CELL_COLUMNS.map((key) => exactText(found[0][i][key])), now.steps[k]];
      for (const part of found) {
        const { value, stderr, predicted, state } = part[i];
        line.push(plainNumber(value), plainNumber(stderr), plainNumber(predicted), state);
      }
      line.push(plainNumber(losses?.[i].value), plainNumber(losses?.[i].reference));
      lines.push(line);
    }
  }
  save(lines, `${now.name}-all-steps`);
}

// --- controls -----------------------------------------------------------------------------------

const MARKS = {
  circle: "M6 2a4 4 0 1 0 .01 0z", "triangle-down": "M1 2h10L6 11z",
  cross: "M4 1h4v3h3v4H8v3H4V8H1V4h3z", square: "M2 2h8v8H2z", diamond: "M6 0l5 6-5 6-5-6z",
};

function drawMarks() {
  for (const input of document.querySelectorAll("[data-state]")) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    svg.setAttribute("viewBox", "0 0 12 12");
    path.setAttribute("d", MARKS[page.marks[input.dataset.state]]);
    svg.append(path);
    input.parentElement.querySelector(".mark").append(svg);
    input.addEventListener("change", () => {
      if (input.checked) choice.states.add(input.dataset.state);
      else choice.states.delete(input.dataset.state);
      refresh();
    });
  }
}

function listen() {
  for (const name of ["pair", "observable", "across", "colour"]) {
    $(name).addEventListener("change", () => {
      choice[name] = $(name).value;
      refresh();
    });
  }
  $("step").addEventListener("input", () => {
    choice.step = Number($("step").value);
    refresh();
  });
  $("predictions").addEventListener("change", () => {
    choice.predictions = $("predictions").checked;
    fillPanels();
  });
  for (const fieldset of document.querySelectorAll(".range")) {
    fieldset.addEventListener("change", () => {
      readRange(fieldset);
      refresh();
    });
  }
  $("clear").addEventListener("click", async () => {
    for (const select of document.querySelectorAll(".range select")) {
      select.selectedIndex = select.dataset.end === "low" ? 0 : select.options.length - 1;
    }
    document.querySelectorAll(".range").forEach(readRange);
    panelsDrawn = "";
    await refresh();
  });
  $("previous").addEventListener("click", () => walk(-1));
  $("next").addEventListener("click", () => walk(1));
  $("first-page").addEventListener("click", () => turnTo(0));
  $("page-back").addEventListener("click", () => turnTo(choice.page - 1));
  $("page-on").addEventListener("click", () => turnTo(choice.page + 1));
  $("last-page").addEventListener("click", () => turnTo(Math.ceil(listed.length / ROWS) - 1));
  $("save-table").addEventListener("click", saveTable);
  $("save-all").addEventListener("click", saveAll);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  isDark.addEventListener("change", refresh);
  addEventListener("resize", () => soon(refresh));
}

drawMarks();
listen();
refresh().then(() => {
  document.documentElement.dataset.ready = "yes";
});
// For whoever wants to ask the charts: the view of the panels, and the lines of one cell.
window.explorer = { view: () => view, lines: (name) => detailViews[name].embedded.view.data(name) };
})();
