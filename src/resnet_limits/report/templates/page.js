(function () {
  "use strict";
  // Theme: of the system, until it is chosen.
  var root = document.documentElement;
  var bar = document.getElementById("tools");
  var button = document.createElement("button");
  var kept = null;
  function dark() {
    var chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }
  function label() { button.textContent = dark() ? "Light theme" : "Dark theme"; }
  try { kept = localStorage.getItem("resnet-limits-theme"); } catch (error) { kept = null; }
  if (kept === "dark" || kept === "light") root.dataset.theme = kept;
  button.type = "button";
  button.className = "tool";
  button.addEventListener("click", function () {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("resnet-limits-theme", root.dataset.theme); } catch (error) { return label(); }
    label();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", label);
  label();
  bar.appendChild(button);
  // Tables: a heading sorts by its column, as numbers where the first signs are one.
  function value(row, column) {
    var cell = row.cells[column];
    var text = (cell.dataset.sort || cell.textContent).trim().replace(/\u2212/g, "-");
    var number = parseFloat(text);
    return { text: text, number: isNaN(number) ? null : number };
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    var headings = Array.from(table.tHead.rows[0].cells);
    headings.forEach(function (heading, column) {
      if (heading.className === "unsorted") return;
      var sorter = document.createElement("button");
      sorter.type = "button";
      sorter.className = "sort";
      while (heading.firstChild) sorter.appendChild(heading.firstChild);
      heading.appendChild(sorter);
      sorter.addEventListener("click", function () {
        var up = heading.getAttribute("aria-sort") !== "ascending";
        headings.forEach(function (other) { other.removeAttribute("aria-sort"); });
        heading.setAttribute("aria-sort", up ? "ascending" : "descending");
        var body = table.tBodies[0];
        Array.from(body.rows).sort(function (one, other) {
          var a = value(one, column), b = value(other, column);
          var order = a.number !== null && b.number !== null ? a.number - b.number
            : a.number !== null ? -1 : b.number !== null ? 1 : a.text.localeCompare(b.text);
          return up ? order : -order;
        }).forEach(function (row) { body.appendChild(row); });
      });
    });
  });
  // A link into a closed part opens it, and paper shows what is closed.
  function open() {
    var target = location.hash.length > 1 && document.getElementById(location.hash.slice(1));
    var part = target && (target.querySelector("details") || target.closest("details"));
    if (part) part.open = true;
  }
  addEventListener("hashchange", open);
  open();
}());
