// What the pages share: elements without markup in strings, keys inside a grid, numbers as people write them.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";

/** An element. Texts become text nodes, so nothing of the data is ever read as markup. */
function make(tag, attributes = {}, ...children) {
  const element = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Two significant digits, as in the tables of the console. */
function number(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  if (Math.abs(value) >= Number.MAX_VALUE) return "∞";
  const size = Math.abs(value);
  if (size >= 0.01 && size < 1000) return size < 10 ? String(Number(value.toPrecision(2))) : value.toFixed(0);
  const [mantissa, exponent] = value.toExponential(1).split("e");
  return `${mantissa.replace(".0", "")}e${Number(exponent)}`;
}

/** A number with its sign, a true minus. */
function signed(value, digits = 1) {
  const text = Math.abs(value).toFixed(digits);
  return (value < 0 ? "−" : "+") + text;
}

/**
 * One cell of a grid can be reached by Tab; arrows, Home, End and the page keys move inside it.
 * `act.enter(cell)` runs on Enter and Space, `act.escape(cell)` on Escape, `act.move(cell)` when a cell gets the focus.
 */
function keys(grid, act = {}) {
  const rows = () => [...grid.querySelectorAll("tr")].map(cellsOf).filter((row) => row.length);
  const cellsOf = (row) => (row.hidden ? [] : [...row.querySelectorAll(":scope > [data-cell], :scope > .rung")]);
  const first = rows()[0];
  if (first && !grid.querySelector("[tabindex='0']")) first[0].tabIndex = 0;

  function focus(cell) {
    for (const other of grid.querySelectorAll("[tabindex='0']")) if (other.matches("td, th")) other.tabIndex = -1;
    cell.tabIndex = 0;
    cell.focus();
  }

  grid.addEventListener("keydown", (event) => {
    const cell = event.target.closest("[data-cell], .rung");
    if (!cell || event.target !== cell || event.altKey || event.metaKey) return;
    const table = rows();
    const y = table.findIndex((row) => row.includes(cell));
    const x = table[y].indexOf(cell);
    const at = (row, column) => row && row[Math.min(column, row.length - 1)];
    const edge = event.ctrlKey;
    const goal = {
      ArrowLeft: () => at(table[y], Math.max(x - 1, 0)),
      ArrowRight: () => at(table[y], x + 1),
      ArrowUp: () => at(table[Math.max(y - 1, 0)], x),
      ArrowDown: () => at(table[Math.min(y + 1, table.length - 1)], x),
      Home: () => at(edge ? table[0] : table[y], 0),
      End: () => at(edge ? table[table.length - 1] : table[y], Infinity),
      PageUp: () => at(table[Math.max(y - 8, 0)], x),
      PageDown: () => at(table[Math.min(y + 8, table.length - 1)], x),
    }[event.key];
    if (goal) {
      event.preventDefault();
      focus(goal());
    } else if ((event.key === "Enter" || event.key === " ") && act.enter) {
      event.preventDefault();
      act.enter(cell);
    } else if (event.key === "Escape" && act.escape) {
      event.preventDefault();
      act.escape(cell);
    }
  });
  grid.addEventListener("focusin", (event) => {
    const cell = event.target.closest("[data-cell], .rung");
    if (cell && cell === event.target) {
      for (const other of grid.querySelectorAll("td[tabindex='0'], th[tabindex='0']")) other.tabIndex = -1;
      cell.tabIndex = 0;
      if (act.move) act.move(cell);
    }
  });
  return focus;
}

/** Ticks of a logarithmic axis: whole powers of ten, at most `most` of them. */
function decades(low, high, most) {
  const from = Math.floor(Math.log10(low));
  const to = Math.ceil(Math.log10(high));
  const every = Math.max(1, Math.ceil((to - from) / most));
  return Array.from({ length: Math.floor((to - from) / every) + 1 }, (_, i) => 10 ** (from + i * every));
}

/** Calls `draw(width)` now and whenever the width of an element changes. */
function sized(place, draw) {
  let width = 0;
  const again = () => {
    if (place.clientWidth && place.clientWidth !== width) draw((width = place.clientWidth));
  };
  new ResizeObserver(again).observe(place);
  again();
}
