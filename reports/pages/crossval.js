// One lane at a time: its operations by layer, the chosen operation by position, its logits, its text.
"use strict";

const CELL = { tap: 0, layer: 1, ratio: 2, limit: 3, outcome: 4, error: 5, size: 6, token: 7, column: 8, errors: 9, ours: 10, theirs: 11 };
const ALL = "";
const state = { lane: 0, case: ALL, cell: null };
const at = (id) => document.getElementById(id);
const lane = () => DATA.lanes[state.lane];
const place = (tap, layer) => (layer < 0 ? tap : `${tap} of layer ${layer}`);

// ---- sizes in powers of ten of the limit ------------------------------------------------------------------------

/** log10(error ÷ limit): −∞ for equal, ∞ for what is no number or breaks an exact limit. */
function powers(ratio, limit) {
  if (ratio === null || ratio === undefined) return Infinity;
  if (ratio === 0) return -Infinity;
  return limit > 0 ? Math.log10(ratio / limit) : Infinity;
}

function level(power) {
  if (power === -Infinity) return "equal";
  if (power > 0) return power < 1 ? 1 : power < 3 ? 2 : power < 5 ? 3 : 4;
  return -Math.min(4, Math.max(1, Math.ceil(-power)));
}

const shown = (power) => (power === -Infinity ? "=" : power === Infinity ? "∞" : signed(power));

function spoken(power) {
  if (power === -Infinity) return "equal to the bit";
  if (power === Infinity) return "not a number, or unequal where equality is asked";
  const factor = number(10 ** Math.abs(power));
  return power > 0 ? `${factor} times its limit` : `${factor} times below its limit`;
}

// ---- the map of operations -----------------------------------------------------------------------------------------

/** Tap → layer → the worst row of the chosen prompts, and the prompt it is of. */
function worstCells() {
  const cells = new Map();
  for (const [name, rows] of Object.entries(lane().operations)) {
    if (state.case !== ALL && state.case !== name) continue;
    for (const row of rows) {
      const key = `${row[CELL.tap]} ${row[CELL.layer]}`;
      const known = cells.get(key);
      const power = powers(row[CELL.ratio], row[CELL.limit]);
      if (!known || power > known.power) cells.set(key, { row, name, power });
    }
  }
  return cells;
}

const layersOf = (cells) => 1 + [...cells.values()].reduce((most, cell) => Math.max(most, cell.row[CELL.layer]), 0);

function drawMap() {
  const cells = worstCells();
  const target = at("map-place");
  if (!cells.size) {
    target.replaceChildren(make("p", { class: "empty" }, "No operation of this lane was compared."));
    return choose(null);
  }
  const layers = layersOf(cells);
  const head = make("tr", { role: "row" }, make("th", { scope: "col", role: "columnheader" }, "operation"));
  for (let layer = 0; layer < layers; layer++) {
    head.append(make("th", { scope: "col", role: "columnheader", "aria-label": `layer ${layer}` }, String(layer)));
  }
  const body = make("tbody", { role: "rowgroup" });
  for (const tap of lane().taps) {
    const row = make("tr", { role: "row" }, make("th", { scope: "row", role: "rowheader" }, tap));
    const whole = cells.get(`${tap} -1`);
    if (whole) row.append(mapCell(tap, -1, whole, layers));
    else for (let layer = 0; layer < layers; layer++) row.append(mapCell(tap, layer, cells.get(`${tap} ${layer}`), 1));
    body.append(row);
  }
  const grid = make("table", { class: "heat", role: "grid", id: "map", "aria-labelledby": "map-title" });
  grid.append(make("thead", { role: "rowgroup" }, head), body);
  target.replaceChildren(grid);
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-cell]");
    if (cell) cell.focus();
  });
  keys(grid, {
    move: (cell) => choose(cells.get(cell.dataset.cell)),
    enter: (cell) => {
      const worst = document.querySelector("#positions [aria-selected='true']");
      const first = document.querySelector(`#positions [data-cell$=" ${Number(cell.dataset.cell.split(" ").pop())}"]`);
      (worst ?? first)?.focus();
    },
    escape: () => at("lane").focus(),
  });
  const found = lane().located;
  const worst = [...cells.values()].reduce((a, b) => (b.power > a.power ? b : a));
  choose((found && cells.get(`${found[0]} ${found[1]}`)) || worst);
}

function mapCell(tap, layer, cell, span) {
  if (!cell) return make("td", { role: "gridcell", class: "cell absent", "aria-label": `${place(tap, layer)}: not compared` }, "–");
  const failed = cell.row[CELL.outcome] === "fail";
  return make(
    "td",
    {
      role: "gridcell",
      class: "cell",
      tabindex: -1,
      "data-cell": `${tap} ${layer}`,
      "data-level": level(cell.power),
      "aria-selected": "false",
      colspan: span > 1 ? span : null,
      "aria-label": `${place(tap, layer)}: ${failed ? "fails, " : ""}${spoken(cell.power)}`,
    },
    shown(cell.power),
  );
}

// ---- the chosen operation ------------------------------------------------------------------------------------------

function choose(cell) {
  state.cell = cell;
  for (const other of document.querySelectorAll("#map [aria-selected='true']")) other.setAttribute("aria-selected", "false");
  const key = cell && `${cell.row[CELL.tap]} ${cell.row[CELL.layer]}`;
  const chosen = cell && [...document.querySelectorAll("#map [data-cell]")].find((one) => one.dataset.cell === key);
  if (chosen) {
    chosen.setAttribute("aria-selected", "true");
    if (!document.querySelector("#map [tabindex='0']:focus")) {
      for (const other of document.querySelectorAll("#map [tabindex='0']")) other.tabIndex = -1;
      chosen.tabIndex = 0;
    }
  }
  drawCell();
  drawPositions();
}

function token(name, position) {
  const rows = lane().tokens[name] || lane().tokens[name.split(", ")[0]] || [];
  return rows[position] || null;
}

const quoted = (text) => `“${text.replaceAll("\n", "↵").replaceAll("\t", "⇥")}”`;

function tokenText(name, position) {
  const row = token(name, position);
  return row ? `${quoted(row[1])} (id ${row[0]})` : "";
}

function drawCell() {
  const target = at("cell");
  if (!state.cell) return target.replaceChildren(make("p", { class: "empty" }, "Nothing to show."));
  const { row, name, power } = state.cell;
  const failed = row[CELL.outcome] === "fail";
  const facts = make("dl");
  const say = (term, text) => facts.append(make("div", {}, make("dt", {}, term), make("dd", {}, make("bdi", {}, text))));
  say("Prompt", name);
  say("Error", `${number(row[CELL.error])} where values reach ${number(row[CELL.size])}`);
  say("Relative", `${number(row[CELL.ratio])}, limit ${number(row[CELL.limit])}`);
  if (row[CELL.token] !== null && row[CELL.ratio] !== 0) {
    const text = tokenText(name, row[CELL.token]);
    say("Worst element", `position ${row[CELL.token]}, column ${row[CELL.column]}`);
    if (text) say("Its token", text);
  }
  target.replaceChildren(
    make("h4", {}, place(row[CELL.tap], row[CELL.layer])),
    make("p", { class: failed ? "verdict-line fail" : "verdict-line pass" }, `${failed ? "✗ " : "✓ "}${spoken(power)}`),
    facts,
    histogram(row),
  );
}

/** Two histograms back to back: the engine above the line, the reference below it. */
function histogram(row) {
  const [ours, theirs] = [row[CELL.ours], row[CELL.theirs]];
  if (!ours || !theirs) return make("p", { class: "note" }, "The values of this operation were not counted.");
  const [width, height, half, foot] = [340, 150, 62, 26];
  const most = Math.log1p(Math.max(...ours, ...theirs, 1));
  const step = width / ours.length;
  const differ = ours.filter((count, i) => count !== theirs[i]).length;
  const label = differ ? `${differ} of ${ours.length} bins differ` : "all bins are equal";
  const image = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, class: "histogram", role: "img", "aria-label": `Histogram of the values, engine against reference: ${label}` });
  for (const [counts, side, sign] of [[ours, "ours", -1], [theirs, "theirs", 1]]) {
    counts.forEach((count, i) => {
      const tall = (Math.log1p(count) / most) * (half - 4);
      const y = sign < 0 ? half - tall : half;
      image.append(
        make("svg:rect", { x: i * step + 1, y, width: step - 2, height: tall, class: side + (ours[i] !== theirs[i] ? " differs" : "") },
          make("svg:title", {}, `${binName(i)}: engine ${ours[i]}, reference ${theirs[i]}`)),
      );
    });
  }
  image.append(make("svg:line", { x1: 0, x2: width, y1: half, y2: half, class: "axis" }));
  for (const [x, anchor, text] of [[0, "start", "−largest"], [width / 2, "middle", "0"], [width, "end", "+largest"]]) {
    image.append(make("svg:text", { x, y: height - foot + 16, "text-anchor": anchor }, text));
  }
  return make(
    "figure",
    {},
    make("figcaption", {}, make("span", { class: "key ours" }), " engine, above; ", make("span", { class: "key theirs" }), ` reference, below: how many values of each size (both scales logarithmic); ${label}.`),
    image,
  );
}

function binName(i) {
  const edges = DATA.edges; // ascending, above 0
  const middle = edges.length;
  if (i === middle) return `within ±${number(edges[0])} of the largest`;
  const [index, sign] = i > middle ? [i - middle - 1, "+"] : [middle - i - 1, "−"];
  const upper = edges[index + 1];
  return `${sign}${number(edges[index])} to ${upper ? sign + number(upper) : "the largest and beyond"}`;
}

// ---- the chosen operation, position by position --------------------------------------------------------------------

function drawPositions() {
  const target = at("positions-place");
  const cell = state.cell;
  const errors = cell && cell.row[CELL.errors];
  if (!errors) {
    at("positions-note").textContent = "";
    return target.replaceChildren(make("p", { class: "empty" }, "Errors by position were not listed for this lane."));
  }
  const tap = cell.row[CELL.tap];
  const rows = (lane().operations[cell.name] || []).filter((row) => row[CELL.tap] === tap && row[CELL.errors]);
  at("positions-note").textContent = `${tap} in “${cell.name}”: one row is a position, one column a layer; the numbers are those of the map.`;
  const head = make("tr", { role: "row" }, make("th", { scope: "col", role: "columnheader" }, "position"), make("th", { scope: "col", role: "columnheader" }, "token"));
  for (const row of rows) {
    const name = row[CELL.layer] < 0 ? "all" : String(row[CELL.layer]);
    head.append(make("th", { scope: "col", role: "columnheader", class: row === cell.row ? "chosen" : null, "aria-label": place(tap, row[CELL.layer]) }, name));
  }
  const body = make("tbody", { role: "rowgroup" });
  errors.forEach((_, position) => {
    const text = token(cell.name, position);
    const line = make(
      "tr",
      { role: "row" },
      make("th", { scope: "row", role: "rowheader", class: "number" }, String(position)),
      make("th", { scope: "row", role: "rowheader", class: "token" }, make("bdi", {}, text ? quoted(text[1]) : "")),
    );
    for (const row of rows) {
      const power = powers(row[CELL.errors][position], row[CELL.limit]);
      const worst = row === cell.row && position === row[CELL.token] && row[CELL.ratio] !== 0;
      line.append(
        make(
          "td",
          {
            role: "gridcell",
            class: worst ? "cell worst" : "cell",
            tabindex: -1,
            "data-cell": `${position} ${row[CELL.layer]}`,
            "data-level": level(power),
            "aria-selected": worst ? "true" : "false",
            "aria-label": `position ${position}, ${place(tap, row[CELL.layer])}: ${spoken(power)}${worst ? ", the worst element" : ""}`,
          },
          shown(power),
        ),
      );
    }
    body.append(line);
  });
  const grid = make("table", { class: "heat", role: "grid", id: "positions", "aria-labelledby": "positions-title" });
  grid.append(make("thead", { role: "rowgroup" }, head), body);
  target.replaceChildren(grid);
  target.scrollTop = 0;
  keys(grid, { escape: () => document.querySelector("#map [aria-selected='true']")?.focus() });
  grid.addEventListener("click", (event) => event.target.closest("[data-cell]")?.focus());
}

// ---- logits by position --------------------------------------------------------------------------------------------

function points() {
  const found = [];
  for (const [name, rows] of Object.entries(lane().positions)) {
    if (state.case !== ALL && state.case.split(", ")[0] !== name) continue;
    for (const [position, phase, value, floor, same, tie, kl, margin] of rows) found.push({ name, position, phase, value, floor, same, tie, kl, margin });
  }
  return found;
}

function drawDrift(width) {
  const target = at("drift-place");
  const every = points();
  if (!every.length) return target.replaceChildren(make("p", { class: "empty" }, "No position of this lane was compared."));
  const positive = every.flatMap((p) => [p.value, p.floor]).concat(lane().floor).filter((v) => v > 0);
  const least = positive.reduce((a, b) => Math.min(a, b), 1);
  const low = 10 ** Math.floor(Math.log10(least));
  const high = 10 ** Math.ceil(Math.log10(positive.reduce((a, b) => Math.max(a, b), low * 100)));
  const [height, left, right, top, foot] = [240, 46, 8, 22, 40];
  const last = every.reduce((a, p) => Math.max(a, p.position), 1);
  const x = (position) => left + (position / last) * (width - left - right);
  const y = (value) => top + (1 - Math.log10(Math.min(Math.max(value, low), high) / low) / Math.log10(high / low)) * (height - top - foot);
  const image = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": summary(every) });
  const noise = [];
  for (const p of every) noise[p.position] = Math.max(noise[p.position] || 0, p.floor || 0);
  const wide = (width - left - right) / (last + 1);
  noise.forEach((value, position) => {
    if (value > 0) image.append(make("svg:rect", { x: x(position) - wide / 2, y: y(value), width: wide, height: height - foot - y(value), class: "noise" }));
  });
  for (const tick of decades(low, high, 6)) {
    image.append(make("svg:line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "rule" }));
    image.append(make("svg:text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  const every10 = Math.max(1, Math.ceil(last / Math.max(2, Math.floor(width / 80)) / 10) * 10);
  for (let position = 0; position <= last; position += every10) {
    image.append(make("svg:text", { x: x(position), y: height - foot + 16, "text-anchor": "middle" }, String(position)));
  }
  image.append(make("svg:text", { x: width / 2, y: height - 6, "text-anchor": "middle" }, "position"));
  if (lane().floor) {
    image.append(make("svg:line", { x1: left, x2: width - right, y1: y(lane().floor), y2: y(lane().floor), class: "floor" }));
    image.append(make("svg:text", { x: width - right, y: y(lane().floor) - 4, "text-anchor": "end" }, "noise floor"));
  }
  for (const p of every) image.append(mark(p, x(p.position), p.value === null ? y(high) : y(p.value)));
  target.replaceChildren(image, make("p", { class: "legend" }, make("span", { class: "dot prefill" }), " prompt in one batch ", make("span", { class: "dot decode" }), " one token at a time ", make("span", { class: "dot tie" }), " near-tie ", make("span", { class: "dot other" }), " another most likely token"));
}

function mark(p, x, y) {
  const title = make("svg:title", {}, `${p.name}, position ${p.position}, ${p.phase}: ${number(p.value)}${p.tie ? ", near-tie" : p.same ? "" : ", another most likely token"}`);
  if (p.tie) return make("svg:path", { d: `M${x} ${y - 6}l6 6l-6 6l-6 -6z`, class: "tie" }, title);
  if (!p.same) return make("svg:path", { d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8`, class: "other" }, title);
  if (p.phase === "decode") return make("svg:rect", { x: x - 2, y: y - 2, width: 4, height: 4, class: "decode" }, title);
  return make("svg:circle", { cx: x, cy: y, r: 2.4, class: "prefill" }, title);
}

function summary(every) {
  const values = every.map((p) => (p.value === null ? Infinity : p.value)).sort((a, b) => a - b);
  const other = every.filter((p) => !p.same).length;
  return `${every.length} positions: median ${number(values[values.length >> 1])}, largest ${number(values[values.length - 1])}; another most likely token at ${other}, ${every.filter((p) => p.tie).length} of them near-ties`;
}

function drawDriftTable() {
  if (!at("drift-details").open) return;
  const head = make("tr", {}, ...["prompt", "phase", "position", "relative L2", "noise", "KL", "most likely token"].map((name) => make("th", { scope: "col" }, name)));
  const body = make("tbody");
  for (const p of points()) {
    const same = p.same ? "same" : p.tie ? "near-tie" : "another";
    const cells = [p.name, p.phase, String(p.position), number(p.value), number(p.floor), number(p.kl), same];
    body.append(make("tr", {}, ...cells.map((text, i) => make("td", { class: i > 1 && i < 6 ? "number" : null }, make("bdi", {}, text)))));
  }
  at("drift-table").replaceChildren(make("table", { class: "plain" }, make("thead", {}, head), body));
}

// ---- text ----------------------------------------------------------------------------------------------------------

function drawText() {
  const parts = [];
  for (const [name, rows] of Object.entries(lane().tokens)) {
    if (state.case !== ALL && state.case.split(", ")[0] !== name) continue;
    const generated = rows.filter((row) => row[2] !== null);
    const other = generated.filter((row) => row[2] !== row[0]).length;
    const text = make("p", { class: "text" });
    let started = false;
    rows.forEach((row, position) => text.append(...written(row, position, !started && row[2] !== null && (started = true))));
    const count = generated.length ? `${rows.length - generated.length} + ${generated.length} tokens, ${other ? `${other} chosen otherwise` : "all chosen alike"}` : `${rows.length} tokens, no continuation was compared`;
    parts.push(make("details", { open: other > 0 || parts.length === 0 ? "" : null }, make("summary", {}, make("bdi", {}, name), ` · ${count}`), text));
  }
  at("text-place").replaceChildren(...(parts.length ? parts : [make("p", { class: "empty" }, "The tokens of this lane were not listed.")]));
}

function written([id, text, ours, oursText], position, first) {
  const shownText = text.replaceAll("\n", "↵\n") || `[${id}]`;
  const title = `position ${position}, id ${id}`;
  const before = first ? [make("span", { class: "turn", "aria-label": "continuation:" }, " ▸ ")] : [];
  if (ours === null) return [...before, make("span", { title, class: "token prompt" }, shownText)];
  if (ours === id) return [...before, make("span", { title, class: "token" }, shownText)];
  const note = `engine chose ${oursText ? quoted(oursText) : `id ${ours}`}`;
  return [...before, make("mark", { title: `${title}; ${note}` }, make("span", { class: "token" }, shownText), make("small", {}, ` ${note} `))];
}

// ---- choosing a lane -----------------------------------------------------------------------------------------------

function chooseLane(index) {
  state.lane = index;
  at("lane").value = String(index);
  const names = Object.keys(lane().operations).length ? Object.keys(lane().operations) : Object.keys(lane().tokens);
  const options = [make("option", { value: ALL }, "all, the worst of each"), ...names.map((name) => make("option", { value: name }, name))];
  at("case").replaceChildren(...options);
  chooseCase(ALL);
}

function chooseCase(name) {
  state.case = name;
  drawMap();
  drawDrift(at("drift-place").clientWidth);
  drawDriftTable();
  drawText();
}

function look(name) {
  chooseLane(Math.max(0, DATA.lanes.findIndex((one) => one.name === name)));
  at("inside").scrollIntoView();
  at("lane").focus({ preventScroll: true });
}

function ladder() {
  const grid = at("ladder-grid");
  if (!grid) return;
  const open = (cell) => {
    const why = at(cell.getAttribute("aria-controls"));
    const again = cell.getAttribute("aria-expanded") === "true";
    close(cell);
    if (again) return;
    why.hidden = false;
    cell.setAttribute("aria-expanded", "true");
    for (const item of why.querySelectorAll("li")) {
      if (item.dataset.rung === cell.dataset.rung) item.setAttribute("aria-current", "true");
      else item.removeAttribute("aria-current");
    }
  };
  const close = (cell) => {
    at(cell.getAttribute("aria-controls")).hidden = true;
    for (const one of cell.parentElement.children) if (one.hasAttribute("aria-expanded")) one.setAttribute("aria-expanded", "false");
  };
  const focus = keys(grid, { enter: open, escape: close });
  grid.addEventListener("click", (event) => {
    const cell = event.target.closest(".rung");
    if (!cell) return;
    focus(cell);
    open(cell);
  });
  grid.addEventListener("keydown", (event) => {
    const why = event.target.closest(".why");
    if (event.key !== "Escape" || !why) return;
    const cell = [...grid.querySelectorAll("[aria-expanded='true']")].find((one) => one.getAttribute("aria-controls") === why.id);
    close(cell);
    focus(cell);
  });
}

function start() {
  ladder();
  for (const button of document.querySelectorAll("[data-look]")) button.addEventListener("click", () => look(button.dataset.look));
  if (!DATA.lanes.length) return at("inside").setAttribute("hidden", "");
  at("lane").addEventListener("change", (event) => chooseLane(Number(event.target.value)));
  at("case").addEventListener("change", (event) => chooseCase(event.target.value));
  at("drift-details").addEventListener("toggle", drawDriftTable);
  const first = DATA.lanes.findIndex((one) => one.located);
  const some = DATA.lanes.findIndex((one) => one.taps.length);
  chooseLane(Math.max(0, first >= 0 ? first : some));
  sized(at("drift-place"), drawDrift);
}

start();
