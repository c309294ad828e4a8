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
    say(input.parentElement.querySelector(".count"), String(counts[input.dataset.state]));
  }
  const words = page.states.map((state) => `${counts[state]} ${state.replace("_", " ")}`).join(", ");
  const all = listed.length === shown.length;
  const text = `${pairWords(pair.name)}, ${page.labels[choice.observable]}, step `
    + `${pair.steps[choice.step]}: ${rows.length} cells: ${words}. ${shown.length} shown, `
    + (all ? "all selected." : `${listed.length} selected.`);
  say($("counts"), text);
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

function newLine() {
  const line = document.createElement("tr");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Show";
  button.addEventListener("click", () => chooseCell(Number(button.dataset.cell)));
  const last = document.createElement("td");
  last.append(button);
  line.append(last);
  return line;
}

function drawPage() {
  const columns = tableColumns();
  const start = choice.page * ROWS;
  const part = listed.slice(start, start + ROWS);
  const body = document.querySelector("#table tbody");
  const focused = document.activeElement && document.activeElement.dataset.cell;
  const lines = children(body, part.length, newLine);
  part.forEach((row, k) => {
    const line = lines[k];
    const button = line.querySelector("button");
    const texts = children(line, columns.length + 1, () => document.createElement("td"));
    if (button.parentElement !== line.lastElementChild) line.lastElementChild.replaceChildren(button);
    columns.forEach(([key], column) => {
      texts[column].className = key === "state" ? "words" : "";
      say(texts[column], cellText(row, key));
    });
    line.dataset.row = button.dataset.cell = row.i;
    button.setAttribute("aria-label", `Show ${nameOf(row)}`);
  });
  // The focus follows the cell that had it; on another page of the table it is nowhere.
  if (focused && document.activeElement.dataset.cell !== focused) {
    const same = body.querySelector(`[data-cell="${focused}"]`);
    if (same) same.focus();
    else document.activeElement.blur();
  }
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

function saveTable() {
  const parts = choice.observable === "loss"
    ? ["value", "reference"] : ["value", "stderr", "predicted"];
  const names = choice.observable === "loss" ? ["loss", "reference_loss"]
    : [choice.observable, `${choice.observable}_stderr`, `${choice.observable}_predicted`];
  const step = pair.steps[choice.step];
  save([
    ["pair", ...COLUMNS, "step", "state", ...names],
    ...listed.map((row) => [pair.name, ...COLUMNS.map((key) => exactText(row[key])), step,
      row.state, ...parts.map((part) => plainNumber(row[part]))]),
  ], `${pair.name}-${choice.observable}-step${step}`);
}

const exactText = (value) => (Number.isNaN(value) || value === undefined ? "" : String(value));

async function saveAll() {
  const now = pair;
  const distances = Object.keys(now.observables).filter((name) => name !== "loss");
  const head = ["pair", ...COLUMNS, "step"];
  for (const name of distances) head.push(name, `${name}_stderr`, `${name}_predicted`, `${name}_state`);
  head.push("loss", "reference_loss");
  const lines = [head];
  for (let k = 0; k < now.steps.length; k++) {
    const found = await Promise.all(distances.map((name) => cellsAt(now, name, k)));
    const losses = now.observables.loss ? await cellsAt(now, "loss", k) : null;
    for (let i = 0; i < now.count; i++) {
      const line = [now.name, ...COLUMNS.map((key) => exactText(found[0][i][key])), now.steps[k]];
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
