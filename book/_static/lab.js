// Tables that scroll can be reached by keyboard and sort by a click on their heads. No library, no network.
"use strict";

// What the other scripts of the site share.
const lab = {
  // An HTML element.
  element(name, attributes, ...children) {
    return lab.filled(document.createElement(name), attributes, children);
  },

  // An element of a drawing.
  drawn(name, attributes, ...children) {
    return lab.filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  },

  filled(made, attributes, children) {
    for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
    made.append(...children);
    return made;
  },

  whenReady(start) {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
    else start();
  },
};

(function () {
  const UNITS = { s: 1, min: 60, h: 3600, kB: 1e3, MB: 1e6, GB: 1e9 };

  // The first number in a cell, with its unit; empty cells and dashes come last in either order.
  function value(text) {
    const found = /([<>]?\s*)([+-]?[\d,]*\.?\d+(?:e[+-]?\d+)?)\s*([A-Za-z]+)?/.exec(text.replace(/−/g, "-"));
    return found ? parseFloat(found[2].replace(/,/g, "")) * (UNITS[found[3]] || 1) : NaN;
  }

  function compare(a, b) {
    const x = value(a), y = value(b);
    if (/^[^\d]*$/.test(a) || /^[^\d]*$/.test(b) || /^[A-Za-z]/.test(a + b)) {
      return a.localeCompare(b, "en", { numeric: true });
    }
    return x - y;
  }

  function sort(table, column, head) {
    const body = table.tBodies[0], rows = Array.from(body.rows);
    const falling = head.getAttribute("aria-sort") === "ascending";
    const text = (row) => (row.cells[column] ? row.cells[column].textContent.trim() : "");
    const missing = (row) => ["", "–", "nan"].includes(text(row));
    rows.sort((a, b) => missing(a) - missing(b) || (falling ? -1 : 1) * compare(text(a), text(b)));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    rows.forEach((row) => body.append(row));
  }

  function sortable(table) {
    const head = table.tHead && table.tHead.rows[table.tHead.rows.length - 1];
    if (!head || !table.tBodies.length || table.tBodies[0].rows.length < 3) return;
    if (!table.classList.contains("results") || table.classList.contains("prose")) return;
    Array.from(head.cells).forEach((cell, column) => {
      if (!cell.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...cell.childNodes);
      button.addEventListener("click", () => sort(table, column, cell));
      cell.append(button);
    });
  }

  // Words stand left, numbers right.
  function aligned(table) {
    if (!table.classList.contains("results") || !table.tBodies.length) return;
    const rows = Array.from(table.tBodies[0].rows), words = (text) => /^[A-Za-z]/.test(text.trim());
    for (const cell of rows.flatMap((row) => Array.from(row.cells))) {
      const text = cell.textContent.trim();
      if (text.includes(" ") && text.length > (words(text) ? 20 : 40)) cell.classList.add("wraps");
      if (/^\S+-[0-9a-f]{10}$/.test(text)) cell.classList.add("run");
    }
    Array.from((rows[0] || { cells: [] }).cells).forEach((_, column) => {
      const cells = rows.map((row) => row.cells[column]).filter(Boolean);
      if (!cells.every((cell) => words(cell.textContent) || !cell.textContent.trim())) return;
      for (const cell of cells) cell.style.textAlign = "left";
    });
  }

  // An interval in brackets may stand below its value, where a table is too wide.
  function intervals(table) {
    for (const cell of table.querySelectorAll("tbody td")) {
      const found = /^(\S+)( \[[^\]]+\])(?: (\S+))?$/.exec(cell.textContent.trim());
      if (!found) continue;
      const interval = lab.element("span", { class: "interval" }, found[2]);
      cell.replaceChildren(found[1], ...(found[3] ? [" " + found[3]] : []), interval);
    }
  }

  const LONG = 40; // rows
  const WIDEST = 970; // pixels of a table beside the text

  const wider = (box) => box.scrollWidth > box.clientWidth + 1;

  const phone = () => window.matchMedia("(max-width: 576px)").matches;

  // On a phone the last columns of a table that is still too wide are folded away; a button below names them and shows them.
  function folded(box) {
    const table = box.querySelector("table.results:not(.prose)");
    const head = table && table.tHead && table.tHead.rows.length === 1 && table.tHead.rows[0];
    if (!head || !phone() || box.dataset.unfolded || !wider(box)) return;
    const rows = Array.from(table.rows), names = [];
    if (rows.some((row) => Array.from(row.cells).some((cell) => cell.colSpan > 1))) return;
    for (let last = 1; last < head.cells.length - 1 && wider(box); last += 1) {
      const cells = rows.map((row) => row.cells[row.cells.length - last]); // counted from the right: heads of rows may span rows
      if (cells.some((cell) => !cell || cell.rowSpan > 1)) break;
      names.unshift(cells[0].textContent.trim());
      for (const cell of cells) cell.classList.add("folded");
    }
    if (!names.length) return;
    const text = `${names.length} more column${names.length > 1 ? "s" : ""}: ${names.join(", ")}`;
    const shows = lab.element("button", { type: "button", class: "unfolds" }, text);
    shows.addEventListener("click", () => {
      box.dataset.unfolded = "yes";
      reachable(box);
      box.focus();
    });
    box.after(shows);
  }

  // A table too wide for the text sets intervals below values, then takes the margin, then scrolls; on a phone, where there is
  // no margin, intervals break, and then columns are folded away.
  function fitted(box) {
    box.classList.remove("stacked", "narrow", "aside");
    box.style.width = "";
    for (const cell of box.querySelectorAll(".folded")) cell.classList.remove("folded");
    if (box.nextElementSibling && box.nextElementSibling.matches("button.unfolds")) box.nextElementSibling.remove();
    if (wider(box)) box.classList.add("stacked");
    if (wider(box) && phone()) box.classList.add("narrow");
    folded(box);
    const room = Math.min(WIDEST, box.scrollWidth, document.documentElement.clientWidth - box.getBoundingClientRect().left - 24);
    if (!wider(box) || room <= box.clientWidth) return;
    box.classList.add("aside");
    box.style.width = `${room}px`;
  }

  function reachable(box) {
    if (box.classList.contains("table-scroll")) fitted(box);
    const down = box.classList.contains("long") && box.scrollHeight > box.clientHeight + 1;
    if (down || wider(box)) box.setAttribute("tabindex", "0");
    else box.removeAttribute("tabindex");
    faded(box);
  }

  // There is more beyond the right edge.
  function faded(box) {
    box.classList.toggle("more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  }

  // The page's contents give way to tables in the margin, as to the theme's own wide parts.
  function giveWay(boxes) {
    const contents = document.querySelector(".bd-sidebar-secondary"), seen = new Set();
    if (!contents || !window.IntersectionObserver) return;
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        const there = entry.isIntersecting && entry.target.classList.contains("aside");
        seen[there ? "add" : "delete"](entry.target);
      }
      contents.classList.toggle("hide", seen.size > 0);
    });
    boxes.forEach((box) => observer.observe(box));
  }

  function ready() {
    for (const table of document.querySelectorAll(".bd-article table")) {
      const box = document.createElement("div");
      box.className = "table-scroll";
      if (table.rows.length > LONG) box.classList.add("long");
      table.replaceWith(box);
      box.append(table);
      // An empty corner is no heading.
      for (const cell of table.querySelectorAll("th")) if (!cell.textContent.trim()) cell.setAttribute("aria-hidden", "true");
      intervals(table);
      aligned(table);
      sortable(table);
    }
    // What the theme's buttons call: see `_CHANGES` of the Sphinx extension.
    for (const button of document.querySelectorAll("[data-calls]")) {
      const call = button.dataset.calls === "window.print" ? () => window.print() : () => window[button.dataset.calls]();
      button.addEventListener("click", call);
    }
    // docutils calls a bibliography a list but not its entries list items.
    for (const list of document.querySelectorAll(".citation-list[role]")) list.removeAttribute("role");
    const boxes = document.querySelectorAll(".table-scroll, .math-block, .bd-article pre");
    const check = () => boxes.forEach(reachable);
    check();
    boxes.forEach((box) => box.addEventListener("scroll", () => faded(box), { passive: true }));
    giveWay(document.querySelectorAll(".table-scroll"));
    window.addEventListener("resize", check);
    document.addEventListener("toggle", check, true); // what was folded had no width
  }

  lab.whenReady(ready);
})();
