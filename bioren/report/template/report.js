"use strict";
// The page can be read without this script: it adds sorting to tables, and a filter.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const numeric = head.classList.contains("n");
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-label", "sort by " + head.textContent);
    head.append(button);
    // The whole heading can be clicked; the button, which holds the arrow alone, is for keyboards.
    head.addEventListener("click", () => {
      // Numbers begin with the largest, names with A.
      const now = head.getAttribute("aria-sort");
      const down = now ? now === "ascending" : numeric;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => row.cells[column].textContent;
      const compare = numeric
        ? (a, b) => parseFloat(value(a)) - parseFloat(value(b))
        : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
      body.append(...[...body.rows].sort((a, b) => (down ? compare(b, a) : compare(a, b))));
    });
  });
}
for (const table of document.querySelectorAll("table.filtered")) {
  const rows = [...table.tBodies[0].rows];
  const controls = document.createElement("div");
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  controls.className = "controls";
  label.textContent = "Show samples and genes with ";
  input.type = "search";
  count.setAttribute("role", "status");
  label.append(input);
  controls.append(label, count);
  table.parentElement.before(controls);
  const show = () => {
    const wanted = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const names = row.cells[0].textContent + "\n" + row.cells[1].textContent;
      row.hidden = !names.toLowerCase().includes(wanted);
      shown += !row.hidden;
    }
    count.textContent = shown + " rows";
  };
  input.addEventListener("input", show);
  show();
}
