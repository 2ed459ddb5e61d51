// One series on one machine: its values over time, medians between changes, and a cursor for mouse and keys.
"use strict";

const at = (id) => document.getElementById(id);
const state = { shown: null, cursor: 0, x: [] };
const day = (time) => new Date(time).toISOString().slice(0, 16).replace("T", " ");
const distinct = (values) => [...new Set(values)];
const options = (id, values) => at(id).replaceChildren(...values.map((value) => make("option", { value }, value)));
const title = (one) => `${one.series} (${one.unit})`;

function fill(kind, name, machine) {
  const kinds = distinct(DATA.series.map((one) => one.kind));
  options("kind", kinds);
  at("kind").value = kinds.includes(kind) ? kind : kinds[0];
  const mine = DATA.series.filter((one) => one.kind === at("kind").value);
  const names = distinct(mine.map(title));
  options("series", names);
  at("series").value = names.includes(name) ? name : names[0];
  const machines = mine.filter((one) => title(one) === at("series").value).map((one) => one.machine);
  options("machine", machines);
  at("machine").value = machines.includes(machine) ? machine : machines[0];
  state.shown = mine.find((one) => title(one) === at("series").value && one.machine === at("machine").value);
  state.cursor = state.shown.points.length - 1;
  const marks = state.shown.changes.map((c) => `${number(c.before)} → ${number(c.after)} since ${day(c.time)}${c.commit ? ` (${c.commit})` : ""}, ${c.worse ? "worse" : "better"}`);
  at("about").textContent = `${state.shown.n} values in ${state.shown.unit}, ${state.shown.better} is better. ${marks.length ? `Changes: ${marks.join("; ")}.` : "No change."}`;
  draw(at("chart").clientWidth);
}

/** About four round ticks from 0 to a value. */
function round(high) {
  const size = 10 ** Math.floor(Math.log10(high / 4));
  const step = [1, 2, 5, 10].map((factor) => factor * size).find((one) => one >= high / 4);
  return Array.from({ length: Math.floor(high / step) + 1 }, (_, i) => i * step);
}

function draw(width) {
  const { points, changes } = state.shown;
  const [height, left, right, top, foot] = [300, 58, 14, 12, 30];
  const [from, to] = [points[0][0], points[points.length - 1][0]];
  const highest = points.reduce((most, p) => Math.max(most, p[3]), 0);
  const lowest = points.reduce((least, p) => Math.min(least, p[2]), Infinity);
  const log = lowest > 0 && highest > 20 * lowest;
  const low = log ? 10 ** Math.floor(Math.log10(lowest)) : 0;
  const high = log ? 10 ** Math.ceil(Math.log10(highest)) : highest * 1.1 || 1;
  const x = (time) => (to === from ? (left + width - right) / 2 : left + ((time - from) / (to - from)) * (width - left - right));
  const share = (value) => (log ? Math.log10(value / low) / Math.log10(high / low) : value / high);
  const y = (value) => top + (1 - share(value)) * (height - top - foot);
  const image = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
  const ticks = log ? decades(low, high, 6) : round(high);
  for (const tick of ticks) {
    image.append(make("svg:line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "rule" }));
    image.append(make("svg:text", { x: left - 8, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  image.append(make("svg:text", { x: left, y: height - 8 }, day(from).slice(0, 10)));
  if (to !== from) image.append(make("svg:text", { x: width - right, y: height - 8, "text-anchor": "end" }, day(to).slice(0, 10)));
  for (const [time, middle, least, most, , n] of points) {
    if (n > 1 && most > least) image.append(make("svg:line", { x1: x(time), x2: x(time), y1: y(least), y2: y(most), class: "range" }));
    image.append(make("svg:circle", { cx: x(time), cy: y(middle), r: points.length > 150 ? 1.8 : 2.6, class: "prefill" }));
  }
  const ends = [from, ...changes.map((change) => change.time), to];
  const medians = changes.length ? [changes[0].before, ...changes.map((change) => change.after)] : [];
  medians.forEach((median, i) => image.append(make("svg:line", { x1: x(ends[i]), x2: x(ends[i + 1]), y1: y(median), y2: y(median), class: "median" })));
  for (const change of changes) {
    image.append(make("svg:line", { x1: x(change.time), x2: x(change.time), y1: top, y2: height - foot, class: "change" }));
    image.append(make("svg:text", { x: x(change.time) + (x(change.time) > width - 90 ? -4 : 4), y: top + 10, "text-anchor": x(change.time) > width - 90 ? "end" : "start", class: "change" }, change.worse ? "▼ worse" : "▲ better"));
  }
  const chosen = points[state.cursor];
  image.append(make("svg:path", { d: `M${x(chosen[0])} ${y(chosen[1]) - 6}l6 6l-6 6l-6 -6z`, class: "tie" }));
  state.x = points.map((p) => x(p[0]));
  at("chart").replaceChildren(image);
  const said = `${day(chosen[0])}, commit ${chosen[4] || "unknown"}: ${number(chosen[1])} ${state.shown.unit}${chosen[5] > 1 ? ` (median of ${chosen[5]}, ${number(chosen[2])} to ${number(chosen[3])})` : ""}`;
  at("readout").textContent = said;
  at("chart").setAttribute("aria-valuemax", points.length - 1);
  at("chart").setAttribute("aria-valuenow", state.cursor);
  at("chart").setAttribute("aria-valuetext", said);
}

function move(to) {
  state.cursor = Math.min(Math.max(to, 0), state.shown.points.length - 1);
  draw(at("chart").clientWidth);
}

function start() {
  if (!DATA.series.length) return at("trend").setAttribute("hidden", "");
  const again = () => fill(at("kind").value, at("series").value, at("machine").value);
  for (const id of ["kind", "series", "machine"]) at(id).addEventListener("change", again);
  for (const link of document.querySelectorAll("[data-series]")) {
    link.addEventListener("click", () => {
      const one = DATA.series.find((s) => s.series === link.dataset.series && s.machine === link.dataset.machine && s.unit === link.dataset.unit);
      if (one) fill(one.kind, title(one), one.machine);
    });
  }
  at("chart").addEventListener("keydown", (event) => {
    const last = state.shown.points.length - 1;
    const goal = { ArrowLeft: state.cursor - 1, ArrowDown: state.cursor - 1, ArrowRight: state.cursor + 1, ArrowUp: state.cursor + 1, Home: 0, End: last, PageUp: state.cursor + 10, PageDown: state.cursor - 10 }[event.key];
    if (goal === undefined) return;
    event.preventDefault();
    move(goal);
  });
  at("chart").addEventListener("click", (event) => {
    const x = event.clientX - at("chart").getBoundingClientRect().left;
    move(state.x.reduce((best, value, i) => (Math.abs(value - x) < Math.abs(state.x[best] - x) ? i : best), 0));
  });
  const first = DATA.series[0];
  fill(first.kind, title(first), first.machine);
  sized(at("chart"), draw);
}

start();
