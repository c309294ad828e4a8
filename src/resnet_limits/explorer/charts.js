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
    if (rows.length > MANY) {
      if (layer.data.name === "cells") layer.mark.size = 12;
      if (layer.data.name === "predicted") Object.assign(layer.mark, { width: 4, thickness: 1 });
    }
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

// The chosen cell is one of the cells: it widens no axis. Were it counted, every choice would have
// all scales, and so all marks, computed anew.
function withoutChosen(spec) {
  const names = new Set(["chosen"]);
  for (const { name, source } of spec.data) if (names.has(source)) names.add(name);
  for (const { domain } of spec.scales) {
    if (domain.fields) domain.fields = domain.fields.filter(({ data }) => !names.has(data));
  }
  return spec;
}

function newView(spec, element) {
  return vegaEmbed(element, spec, {
    mode: "vega-lite", actions: false, renderer: "canvas", hover: false, defaultStyle: false,
    config: theme(), tooltip: showTip, logLevel: 1, patch: withoutChosen,
  });
}

// A canvas that is left without a size gives its pixels back at once, not when memory is cleared.
function leave(embedded, element) {
  embedded.finalize();
  for (const canvas of element.querySelectorAll("canvas")) canvas.width = canvas.height = 0;
  element.replaceChildren();
}

async function drawPanels(colour) {
  // Pairs of the same sizes have the same panels, which only get other rows.
  const drawn = JSON.stringify([pair.sizes, SIZES.map(sizesOf), rows.length > MANY, choice.across,
    colour, isDark.matches, $("panels").clientWidth]);
  if (drawn === panelsDrawn) return fillPanels();
  if (embedded) leave(embedded, $("panels"));
  embedded = view = null;
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
const CHANGING = ["x", "c", "value", "state", "inside", ...SIZES, "parameters"];
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
  const found = children(list, 2 * entries.length, (k) => document.createElement(k % 2 ? "dd" : "dt"));
  entries.flat().forEach((words, k) => say(found[k], String(words)));
}

function showTip(handler, event, item, value) {
  const tip = $("tip");
  if (!value) {
    tip.hidden = true;
    return;
  }
  const entries = value.i === undefined ? Object.entries(value) : facts(rows[value.i]);
  describe(tip.firstElementChild, entries);
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = event.clientX + 14 + width > innerWidth ? event.clientX - 14 - width : event.clientX + 14;
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${Math.max(0, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
}

// --- one cell -----------------------------------------------------------------------------------

function chooseCell(i) {
  choice.cell = i;
  if (view) view.data("chosen", chosenRows()).runAsync();
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
  say($("cell-title"), nameOf(row));
  say($("reference-said"), page.names[now.second]);
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
  if (!parts) return { why: "The losses of these networks and limits are not available." };
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

const ROUNDING = 1e-5;
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
  // Both start from one embedding: what is left at s = 0 is rounding, which would press the lines
  // together.
  const least = ROUNDING * Math.max(...lines.map((row) => row.y));
  return {
    title: `Distance of hidden states over depth, step ${now.steps[profile.steps[nearest]]}`,
    note: lines.some((row) => row.x === 0 && row.y <= least) ? " (0 at s = 0)" : "",
    rows: lines.filter((row) => row.y > (row.x === 0 ? least : 0) && Number.isFinite(row.x)),
  };
}

const detailViews = {};
async function drawLines(name, content) {
  const element = $(name);
  say($(`${name}-said`), (content.title || "") + (content.note || ""));
  if (!content.why && !content.rows.length) content.why = "There is no number to draw.";
  if (content.why) {
    if (detailViews[name]) leave(detailViews[name].embedded, element);
    delete detailViews[name];
    const words = document.createElement("div");
    words.className = "none";
    words.textContent = content.why;
    element.replaceChildren(words);
    return;
  }
  const drawn = `${isDark.matches} ${element.clientWidth}`;
  if (!detailViews[name] || detailViews[name].drawn !== drawn) {
    if (detailViews[name]) leave(detailViews[name].embedded, element);
    delete detailViews[name];
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

