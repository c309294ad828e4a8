const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const SYMBOL = { depth: "L", width: "M", embed_dim: "D" };
const SIZES = Object.keys(SYMBOL);
const COLUMNS = [...SIZES, "seed", "parameters", "weights"];
const ROWS = 15;
const [RESOLVED, BELOW] = [0, 1];

// --- elements -----------------------------------------------------------------------------------

// What is drawn often keeps its elements and changes their words: elements that are thrown away
// fill the memory long before the browser clears it.
function children(parent, count, make) {
  while (parent.children.length > count) parent.lastElementChild.remove();
  while (parent.children.length < count) parent.append(make(parent.children.length));
  return parent.children;
}

function say(element, words) {
  if (!element.firstChild) element.append(words);
  else if (element.firstChild.data !== words) element.firstChild.data = words;
}

// --- numbers ------------------------------------------------------------------------------------

// Columns that are asked for together are inflated as one stream, each a piece of it after its
// number of bytes.
const END = new Uint8Array([3, 0]);
let asked = [];

function bytesOf(place) {
  if (!asked.length) queueMicrotask(inflate);
  return new Promise((resolve, reject) => { asked.push({ place, resolve, reject }); });
}

async function inflate() {
  const now = asked;
  asked = [];
  try {
    const stream = new DecompressionStream("deflate-raw");
    const whole = new Response(stream.readable).arrayBuffer();
    const writer = stream.writable.getWriter();
    const lengths = now.map(({ place }) => {
      const text = atob(page.columns[place]);
      const bytes = new Uint8Array(text.length);
      for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
      writer.write(bytes.subarray(4));
      return new DataView(bytes.buffer).getUint32(0, true);
    });
    writer.write(END);
    writer.close();
    const inflated = new Uint8Array(await whole);
    let start = 0;
    now.forEach(({ resolve }, k) => {
      resolve(inflated.subarray(start, start + lengths[k]));
      start += lengths[k];
    });
  } catch (error) {
    for (const { reject } of now) reject(error);
  }
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

// Columns that were unpacked, the latest used last.
const unpacked = new Map();
const MOST_HELD = 12e6; // bytes
let held = 0;

function column(place, size) {
  let entry = unpacked.get(place);
  if (entry) {
    unpacked.delete(place);
  } else {
    entry = { bytes: 0 };
    entry.array = bytesOf(place).then((bytes) => {
      const array = size === 1 ? bytes.slice() : numbers(bytes, size);
      if (unpacked.get(place) === entry) {
        entry.bytes = array.byteLength;
        held += entry.bytes;
        forget();
      }
      return array;
    });
  }
  unpacked.set(place, entry);
  return entry.array;
}

function forget() {
  for (const [place, { bytes }] of unpacked) {
    if (held <= MOST_HELD) return;
    held -= bytes;
    unpacked.delete(place);
  }
}
const values = (place) => column(place, 4);
const exact = (place) => column(place, 8);
const codes = (place) => column(place, 1);

function said(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "\u2013";
  // Numbers of things are exact; a measured value is never a whole number of more than six digits.
  if (Number.isInteger(value) && Math.abs(value) < 1e12) return String(value);
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
  const rows = old;
  rows.length = pair.count;
  for (let i = 0; i < pair.count; i++) {
    const shape = pair.shape[i];
    const predicted = predictedAt(pair, observable, k, i);
    const row = rows[i] || (rows[i] = {});
    row.i = i;
    for (const name of COLUMNS) row[name] = pair.columns[name] ? pair.columns[name][i] : NaN;
    row.state = page.states[state[i]];
    row.value = value[i];
    row.stderr = parts.stderr ? second[i] : NaN;
    row.reference = parts.reference ? second[i] : NaN;
    row.rms = counts[shape] ? Math.sqrt(squares[shape] / counts[shape]) : NaN;
    row.seeds = counts[shape];
    row.predicted = predicted;
    row.ratio = value[i] / predicted;
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
  const options = children(select, entries.length, () => new Option());
  entries.forEach(([key, words, disabled], k) => {
    options[k].value = key;
    options[k].disabled = Boolean(disabled);
    say(options[k], String(words));
  });
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

