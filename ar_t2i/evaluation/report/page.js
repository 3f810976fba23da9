"use strict";
const valueOf = (cell) => {
  const text = cell.dataset.value ?? cell.textContent.trim();
  return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
};
const before = (a, b) => {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a === typeof b) return a.localeCompare(b, undefined, { numeric: true });
  return typeof a === "number" ? -1 : 1;
};
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sort = head.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", sort);
      const rows = [...table.tBodies[0].rows];
      const sign = sort === "ascending" ? 1 : -1;
      rows.sort((a, b) => sign * before(valueOf(a.cells[column]), valueOf(b.cells[column])));
      table.tBodies[0].append(...rows);
    });
  });
}
document.querySelector("#theme")?.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});
document.querySelector("#boxes")?.addEventListener("click", () => document.body.classList.toggle("boxes"));
