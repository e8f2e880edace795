"use strict";
/* Tables of the class "sorts": each column's name becomes a button that sorts by it, up and then down. */
(() => {
  /* What a cell is sorted by: its value, the number that its text begins with, or the text. */
  function keyOf(cell) {
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    const number = Number.parseFloat(text.replace(/,/g, "").replace("−", "-"));
    return Number.isNaN(number) ? text : number;
  }

  /* Numbers first, then words, in this order also downwards: what is not known stands last. */
  function inOrder(a, b, sign) {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b));
  }

  function sort(table, column, sign) {
    const body = table.tBodies[0], rows = [...body.rows];
    const keys = new Map(rows.map((row) => [row, keyOf(row.cells[column])]));
    rows.sort((a, b) => inOrder(keys.get(a), keys.get(b), sign));
    body.append(...rows);
    [...table.tHead.rows[0].cells].forEach((cell, n) => {
      cell.setAttribute("aria-sort", n !== column ? "none" : sign > 0 ? "ascending" : "descending");
    });
  }

  for (const table of document.querySelectorAll("table.sorts")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = cell.textContent;
      button.addEventListener("click", () =>
        sort(table, column, cell.getAttribute("aria-sort") === "ascending" ? -1 : 1));
      cell.replaceChildren(button);
      cell.setAttribute("aria-sort", "none");
    });
  }
})();
