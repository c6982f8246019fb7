"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const read = (id) => JSON.parse(byId(id).textContent);
  const data = read("data");
  if (!data.calls.length) { filterPackages(); return; }

  let detailsRead;
  const details = () => (detailsRead ??= read("details"));

  const [ID, PARENT, TASK, STATUS, SUBMITTED, STARTED, ENDED, SECONDS, CPU, PEAK, LIMIT, ATTEMPTS, SHAPE] = Array(13).keys();
  const SIGNS = { succeeded: "✓", cached: "≡", failed: "✗", cancelled: "⊘", running: "▶", waiting: "·", interrupted: "⚠" };
  const calls = data.calls;
  const numberOf = new Map(calls.map((call, number) => [call[ID], number]));
  const task = (call) => data.tasks[call[TASK]];

  // -- texts ---------------------------------------------------------------------------------------------------------

  const HIDDEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u061c\u2028-\u202e\u2066-\u2069\ufeff]/g;
  const visible = (text) => String(text).replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

  function seconds(value) {
    if (value === null || value === undefined) return "–";
    if (value < 60) return value.toFixed(value < 10 ? 2 : 1) + " s";
    const whole = Math.round(value), two = (number) => String(number).padStart(2, "0");
    if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
    return `${Math.floor(whole / 3600)} h ${two(Math.floor(whole / 60) % 60)} min`;
  }

  function bytes(value) {
    if (value === null || value === undefined) return "–";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    for (; value >= 1024 && unit < 4; unit++) value /= 1024;
    return value.toFixed(unit === 0 || value >= 100 ? 0 : 1) + " " + units[unit];
  }

  const waited = (call) => call[STARTED] === null ? null : Math.max(0, call[STARTED] - call[SUBMITTED]);

  /** An element with attributes and children; every text among these is text, whatever it says. */
  function make(name, attributes, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
    }
    for (const child of children.flat()) {
      if (child === null || child === undefined) continue;
      made.append(child instanceof Node ? child : visible(child));
    }
    return made;
  }

  const theirs = (text) => make("bdi", {}, text);
  const status = (name) => make("span", { class: name }, make("span", { "aria-hidden": "true" }, SIGNS[name] + " "), name);

  // -- the list ------------------------------------------------------------------------------------------------------

  const COLUMNS = [
    ["Call", null, (call) => call[ID]],
    ["Task", (call) => task(call), (call) => theirs(task(call))],
    ["Status", (call) => call[STATUS], (call) => status(call[STATUS])],
    ["Began", (call) => call[STARTED] ?? call[SUBMITTED], (call) => call[STARTED] === null ? "–" : "+" + seconds(call[STARTED])],
    ["Waited", waited, (call) => seconds(waited(call))],
    ["Ran", (call) => call[SECONDS], (call) => seconds(call[SECONDS])],
    ["CPU", (call) => call[CPU], (call) => seconds(call[CPU])],
    ["Memory", (call) => call[PEAK], (call) => bytes(call[PEAK])],
    ["Tries", (call) => call[ATTEMPTS], (call) => String(call[ATTEMPTS])],
  ];
  const FIRST_NUMBER = 3;
  const MOST_PRINTED = 1000;

  const children = calls.map(() => []);
  const roots = [];
  calls.forEach((call, number) => (call[PARENT] < 0 ? roots : children[call[PARENT]]).push(number));
  const folded = new Set();
  const grid = { rows: [], depth: new Map(), sort: 0, down: false, active: 0, printing: false };
  const scroller = byId("scroller"), sizer = byId("sizer");

  function tree() {
    const rows = [], front = roots.map((number) => [number, 0]).reverse();
    grid.depth.clear();
    while (front.length) {
      const [number, depth] = front.pop();
      rows.push(number);
      grid.depth.set(number, depth);
      if (!folded.has(number)) for (let i = children[number].length; i--;) front.push([children[number][i], depth + 1]);
    }
    return rows;
  }

  const isTree = () => grid.sort === 0 && !byId("search").value.trim() && !byId("status").value;

  function arrange() {
    const words = byId("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = byId("status").value;
    const kept = (call) => (!wanted || call[STATUS] === wanted)
      && words.every((word) => call[ID].startsWith(word) || task(call).toLowerCase().includes(word) || call[STATUS] === word);
    const before = grid.rows[grid.active];
    if (isTree()) {
      grid.rows = grid.down ? tree().reverse() : tree();
    } else {
      grid.rows = [...calls.keys()].filter((number) => kept(calls[number]));
      const value = COLUMNS[grid.sort][1], sign = grid.down ? -1 : 1;
      if (value) {
        const keys = calls.map(value);
        const nothing = (key) => key === null || key === undefined;
        grid.rows.sort((a, b) => nothing(keys[a]) - nothing(keys[b]) || sign * ((keys[a] > keys[b]) - (keys[a] < keys[b])) || a - b);
      } else if (grid.down) grid.rows.reverse();
    }
    grid.active = Math.max(0, grid.rows.indexOf(before));
    byId("found").textContent = isTree() ? "" : `${grid.rows.length} of ${calls.length}`;
    byId("fold").disabled = !isTree() || grid.down;
    scroller.setAttribute("aria-rowcount", String(grid.rows.length + 1));
    render();
  }

  const seen = () => scroller.clientHeight - byId("head").offsetHeight;
  const rowHeight = () => (matchMedia("(max-width: 52rem)").matches ? 56 : 36);

  function row(at) {
    const number = grid.rows[at], call = calls[number], inTree = isTree() && !grid.down;
    const depth = inTree ? grid.depth.get(number) : 0, inner = inTree && children[number].length > 0;
    const made = make("div", {
      role: "row", id: "row-" + at, "aria-rowindex": at + 2, "aria-selected": String(at === grid.active),
      "aria-level": inTree ? depth + 1 : null, "aria-expanded": inner ? String(!folded.has(number)) : null,
    });
    COLUMNS.forEach(([, , show], column) => {
      const cell = make("div", { role: "gridcell", class: column >= FIRST_NUMBER ? "number" : null }, show(call));
      if (column === 0) {
        const twig = make("span", { class: "twig", "aria-hidden": "true" }, inner ? (folded.has(number) ? "▸" : "▾") : " ");
        const indent = make("span", { class: "depth" });
        indent.style.width = Math.min(depth, 12) * .8 + "em";
        cell.prepend(indent, twig);
        if (inner) twig.addEventListener("click", (event) => { event.stopPropagation(); grid.active = at; fold(number); });
      }
      if (column === 1) cell.title = visible(task(call));
      made.append(cell);
    });
    made.addEventListener("click", () => { grid.active = at; location.hash = "call=" + call[ID]; });
    if (!grid.printing) made.style.top = at * rowHeight() + "px";
    return made;
  }

  function render() {
    const height = rowHeight();
    sizer.style.height = grid.rows.length * height + "px";
    const first = grid.printing ? 0 : Math.max(0, Math.floor(scroller.scrollTop / height) - 6);
    const last = grid.printing ? MOST_PRINTED : Math.ceil((scroller.scrollTop + seen()) / height) + 6;
    const made = [];
    for (let at = first; at < Math.min(last, grid.rows.length); at++) made.push(row(at));
    if (grid.printing && grid.rows.length > MOST_PRINTED) {
      made.push(make("p", { class: "note" }, `… and ${grid.rows.length - MOST_PRINTED} more calls, which are not printed.`));
    }
    sizer.replaceChildren(...made);
    const there = grid.active >= first && grid.active < last && grid.rows.length;
    if (there) scroller.setAttribute("aria-activedescendant", "row-" + grid.active);
    else scroller.removeAttribute("aria-activedescendant");
  }

  function fold(number) {
    if (folded.has(number)) folded.delete(number); else folded.add(number);
    arrange();
  }

  function move(to) {
    grid.active = Math.max(0, Math.min(grid.rows.length - 1, to));
    const height = rowHeight(), top = grid.active * height;
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (top + height > scroller.scrollTop + seen()) scroller.scrollTop = top + height - seen();
    render();
  }

  function gridKey(event) {
    const number = grid.rows[grid.active];
    if (event.target !== scroller || number === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(seen() / rowHeight()) - 1);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps) move(grid.active + steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") location.hash = "call=" + calls[number][ID];
    else if (event.key === "ArrowRight" && isTree() && folded.has(number)) fold(number);
    else if (event.key === "ArrowLeft" && isTree() && children[number].length && !folded.has(number)) fold(number);
    else if (event.key === "ArrowLeft" && isTree() && calls[number][PARENT] >= 0) move(grid.rows.indexOf(calls[number][PARENT]));
    else return;
    event.preventDefault();
  }

  function listCalls() {
    COLUMNS.forEach(([name], column) => {
      const button = make("button", { type: "button" }, name);
      const head = make("div", { role: "columnheader", class: column >= FIRST_NUMBER ? "number" : null, "aria-sort": column ? "none" : "ascending" }, button);
      button.addEventListener("click", () => {
        grid.down = grid.sort === column ? !grid.down : column >= FIRST_NUMBER;
        grid.sort = column;
        for (const each of byId("columns").children) each.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", grid.down ? "descending" : "ascending");
        scroller.scrollTop = 0;
        grid.rows = [];
        arrange();
      });
      byId("columns").append(head);
    });
    byId("search").addEventListener("input", () => { scroller.scrollTop = 0; arrange(); });
    byId("status").addEventListener("change", () => { scroller.scrollTop = 0; arrange(); });
    byId("fold").addEventListener("click", () => {
      if (folded.size) folded.clear();
      else children.forEach((inner, number) => inner.length && calls[number][PARENT] >= 0 && folded.add(number));
      if (!folded.size && byId("fold").textContent === "Collapse all") roots.forEach((number) => folded.add(number));
      byId("fold").textContent = folded.size ? "Expand all" : "Collapse all";
      arrange();
    });
    scroller.addEventListener("scroll", () => requestAnimationFrame(render), { passive: true });
    scroller.addEventListener("keydown", gridKey);
    addEventListener("resize", render);
    addEventListener("beforeprint", () => { grid.printing = true; render(); });
    addEventListener("afterprint", () => { grid.printing = false; render(); });
    arrange();
  }

  // -- the timeline --------------------------------------------------------------------------------------------------

  const LANE = 22, AXIS = 26;
  const ROUND = [10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 43200];
  const FAILED = (outcome) => outcome !== "ok" && outcome !== "";

  function drawTimeline() {
    const box = byId("timeline"), canvas = box.firstElementChild, pen = canvas.getContext("2d");
    const view = { from: 0, to: data.span, active: -1 };
    const environments = [...new Set(data.lanes.map((lane) => lane[0]))];
    const order = [...data.bars.keys()].sort((a, b) => data.bars[a][3] - data.bars[b][3] || a - b);
    const named = environments.filter((name) => name !== "GPU"), swatches = named.map(swatch);
    let labels = 0, scale = 1, colours = {};

    const HUES = [197, 258, 155, 42, 292, 95, 220];  // none that looks like a failure
    const colour = (environment) => `hsl(${HUES[environments.indexOf(environment) % HUES.length]} ${colours.dark ? "42% 62%" : "45% 40%"})`;
    const x = (time) => labels + (time - view.from) * scale;

    function resize() {
      const width = box.clientWidth, height = AXIS + data.lanes.length * LANE + 8, dense = devicePixelRatio || 1;
      canvas.width = width * dense;
      canvas.height = height * dense;
      canvas.style.width = width + "px";
      canvas.style.height = height + "px";
      pen.setTransform(dense, 0, 0, dense, 0, 0);
      const style = getComputedStyle(document.documentElement);
      for (const name of ["ink", "quiet", "line", "soft", "card", "bad", "accent"]) colours[name] = style.getPropertyValue("--" + name);
      colours.dark = matchMedia("(prefers-color-scheme: dark)").matches && !matchMedia("print").matches;
      labels = width < 520 ? 86 : 168;
      swatches.forEach((each, number) => each.setAttribute("fill", colour(named[number])));
      draw();
    }

    function draw() {
      const width = box.clientWidth, height = AXIS + data.lanes.length * LANE + 8;
      scale = (width - labels - 12) / (view.to - view.from);
      pen.clearRect(0, 0, width, height);
      pen.font = "12px system-ui, sans-serif";
      pen.textBaseline = "middle";
      drawAxis(width, height);
      data.lanes.forEach(([environment, slot], lane) => {
        const y = AXIS + lane * LANE, isFirst = lane === 0 || data.lanes[lane - 1][0] !== environment;
        if (isFirst && lane) { pen.fillStyle = colours.line; pen.fillRect(0, y - .5, width, 1); }
      });
      pen.save();
      pen.beginPath();
      pen.rect(labels, 0, width - labels, height);
      pen.clip();
      data.bars.forEach((bar) => FAILED(bar[5]) || drawBar(bar));
      data.bars.forEach((bar) => FAILED(bar[5]) && drawBar(bar));  // seen, also among thousands
      if (view.active >= 0) outline(data.bars[view.active]);
      pen.restore();
      data.lanes.forEach(([environment, slot], lane) => {
        const y = AXIS + lane * LANE, isFirst = lane === 0 || data.lanes[lane - 1][0] !== environment;
        pen.fillStyle = isFirst ? colours.ink : colours.quiet;
        pen.textAlign = "left";
        if (isFirst) pen.fillText(cut(visible(environment), labels - (labels < 100 ? 34 : 60)), 12, y + LANE / 2);
        pen.textAlign = "right";
        pen.fillStyle = colours.quiet;
        pen.fillText(cut(visible(labels < 100 ? slot.replace(/^\D+(?=\d+$)/, "") : slot), 84), labels - 10, y + LANE / 2);
      });
    }

    function cut(text, width) {
      if (pen.measureText(text).width <= width) return text;
      while (text && pen.measureText(text + "…").width > width) text = text.slice(0, -1);
      return text + "…";
    }

    function drawAxis(width, height) {
      const raw = (view.to - view.from) / Math.max(2, (width - labels) / 110), power = 10 ** Math.floor(Math.log10(raw));
      const steps = raw < 10 ? [1, 2, 5, 10].map((times) => times * power) : ROUND;
      const step = steps.find((each) => each >= raw) ?? Math.ceil(raw / 86400) * 86400;
      const unit = (time) => step >= 1 && time >= 60 ? seconds(time).replace(/ 00 (s|min)$/, "") : +time.toFixed(Math.max(0, -Math.floor(Math.log10(step)))) + " s";
      pen.textAlign = "center";
      for (let time = Math.ceil(view.from / step) * step; time <= view.to; time += step) {
        pen.fillStyle = colours.line;
        pen.fillRect(Math.round(x(time)), AXIS - 4, 1, height);
        pen.fillStyle = colours.quiet;
        if (x(time) > labels + 4 || time === 0) pen.fillText(unit(time), Math.min(Math.max(x(time), labels + 8), width - 24), 12);
      }
    }

    function place(bar) {
      const from = Math.max(x(bar[3]), labels - 4), to = Math.min(x(bar[4]), box.clientWidth + 4);
      return [from, AXIS + bar[0] * LANE + 4, Math.max(to - from, FAILED(bar[5]) ? 5 : 2), LANE - 8];
    }

    function drawBar(bar) {
      if (bar[4] < view.from || bar[3] > view.to) return;
      const [left, top, width, height] = place(bar), environment = calls[bar[1]] && task(calls[bar[1]]).split(".")[0];
      const tone = FAILED(bar[5]) ? colours.bad : colour(environments.includes(environment) ? environment : data.lanes[bar[0]][0]);
      pen.fillStyle = pen.strokeStyle = tone;
      if (children[bar[1]].length) {
        pen.globalAlpha = .16;
        pen.fillRect(left, top, width, height);
        pen.globalAlpha = 1;
        pen.strokeRect(left + .5, top + .5, Math.max(width - 1, 1), height - 1);
      } else pen.fillRect(left, top, width, height);
      if (FAILED(bar[5])) {
        pen.save();
        pen.beginPath();
        pen.rect(left, top, width, height);
        pen.clip();
        pen.strokeStyle = children[bar[1]].length ? tone : colours.card;
        pen.lineWidth = 1.5;
        pen.beginPath();
        for (let at = left - height; at < left + width; at += 7) { pen.moveTo(at, top + height); pen.lineTo(at + height, top); }
        pen.stroke();
        pen.restore();
      }
    }

    function outline(bar) {
      const [left, top, width, height] = place(bar);
      pen.strokeStyle = colours.ink;
      pen.lineWidth = 2;
      pen.strokeRect(left - 2, top - 2, width + 4, height + 4);
      pen.lineWidth = 1;
    }

    function say(active) {
      view.active = active;
      const bar = data.bars[active];
      byId("readout").replaceChildren(bar ? told(bar) : "\u00a0");
      draw();
    }

    function told(bar) {
      const call = calls[bar[1]], outcome = bar[5] || (call[STATUS] === "running" ? "still running" : call[STATUS]);
      const again = call[ATTEMPTS] > 1 ? `, attempt ${bar[2]}` : "";
      return make("span", {}, make("strong", {}, `${call[ID]} ${task(call)}`), `${again}: ${outcome}, from +${seconds(bar[3])}, for ${seconds(bar[4] - bar[3])}, waited ${seconds(waited(call))}`);
    }

    function at(event) {
      const edge = canvas.getBoundingClientRect(), left = event.clientX - edge.left, lane = Math.floor((event.clientY - edge.top - AXIS) / LANE);
      let best = -1, nearest = 4;
      data.bars.forEach((bar, number) => {
        if (bar[0] !== lane) return;
        const [from, , width] = place(bar), away = left < from ? from - left : Math.max(0, left - from - width);
        if (away < nearest || (away === 0 && nearest === 0)) { best = number; nearest = away; }
      });
      return best;
    }

    function zoom(times, around = (view.from + view.to) / 2) {
      const span = Math.min(data.span, Math.max((view.to - view.from) * times, data.span / 1e5));
      view.from = Math.min(Math.max(0, around - (around - view.from) / (view.to - view.from) * span), data.span - span);
      view.to = view.from + span;
      draw();
    }

    function follow(bar) {
      const span = view.to - view.from;
      if (bar[3] < view.from || bar[3] > view.to) {
        view.from = Math.min(Math.max(0, bar[3] - span / 2), data.span - span);
        view.to = view.from + span;
      }
      const top = bar[0] * LANE;
      if (top < box.scrollTop || top + AXIS + LANE > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
    }

    function step(event) {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const rank = order.indexOf(view.active), bar = data.bars[view.active];
      let next = null;
      if (event.key === "ArrowRight") next = order[Math.min(rank + 1, order.length - 1)];
      else if (event.key === "ArrowLeft") next = order[Math.max(rank - 1, 0)];
      else if (event.key === "ArrowDown" || event.key === "ArrowUp") next = across(bar, event.key === "ArrowDown" ? 1 : -1);
      else if (event.key === "Enter" && bar) location.hash = "call=" + calls[bar[1]][ID];
      else if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? .5 : 2, bar ? bar[3] : undefined);
      else return;
      event.preventDefault();
      if (next !== null && next !== undefined) { follow(data.bars[next]); say(next); }
    }

    function across(bar, by) {
      if (!bar) return order[0];
      for (let lane = bar[0] + by; lane >= 0 && lane < data.lanes.length; lane += by) {
        const there = order.filter((number) => data.bars[number][0] === lane);
        if (there.length) return there.reduce((a, b) => Math.abs(data.bars[a][3] - bar[3]) <= Math.abs(data.bars[b][3] - bar[3]) ? a : b);
      }
      return null;
    }

    let pointed = null;
    box.addEventListener("pointermove", (event) => {
      if (!pointed) requestAnimationFrame(() => { const found = at(pointed); pointed = null; if (found !== view.active) say(found); });
      pointed = event;
    });
    box.addEventListener("click", (event) => { const found = at(event); if (found >= 0) location.hash = "call=" + calls[data.bars[found][1]][ID]; });
    box.addEventListener("keydown", step);
    box.addEventListener("focus", () => { if (view.active < 0 && order.length && box.matches(":focus-visible")) say(order[0]); });
    byId("zoom-in").addEventListener("click", () => zoom(.5));
    byId("zoom-out").addEventListener("click", () => zoom(2));
    byId("zoom-all").addEventListener("click", () => { view.from = 0; view.to = data.span; draw(); });
    addEventListener("resize", resize);
    for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", resize);
    resize();
  }

  /** Adds an environment to the legend; answers with what has its colour. */
  function swatch(environment) {
    const [svg, square] = ["svg", "rect"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
    for (const [key, value] of Object.entries({ width: 10, height: 10 })) { svg.setAttribute(key, value); square.setAttribute(key, value); }
    svg.setAttribute("aria-hidden", "true");
    square.setAttribute("rx", 2);
    svg.append(square);
    byId("legend").append(make("li", {}, svg, theirs(environment)));
    return square;
  }

  // -- one call ------------------------------------------------------------------------------------------------------

  function section(title, ...parts) {
    return make("section", {}, make("h3", {}, title), ...parts);
  }

  function table(head, rows, kind = "") {
    return make("div", { class: "wide " + kind, tabindex: "0", role: "region", "aria-label": "table" }, make("table", {},
      make("thead", {}, make("tr", {}, head.map((name) => make("th", { scope: "col" }, name)))),
      make("tbody", {}, rows.map((cells) => make("tr", {}, cells.map((cell) => make("td", {}, cell)))))));
  }

  const block = (label, text) => make("pre", { tabindex: "0", "aria-label": label }, theirs(text));

  /** A list of objects with mostly the same names, as a table: its head and rows; null for anything else. */
  function asTable(doc) {
    const isRecord = (each) => each && typeof each === "object" && !Array.isArray(each);
    if (!Array.isArray(doc) || !doc.length || !doc.every(isRecord)) return null;
    const names = [...new Set(doc.slice(0, 200).flatMap(Object.keys))];
    if (!names.length || names.length > 30) return null;
    const cell = (value) => value === undefined ? "" : typeof value === "string" ? theirs(value) : JSON.stringify(value);
    return [names.map(theirs), doc.slice(0, 200).map((each) => names.map((name) => cell(each[name])))];
  }

  const isFile = (each, files) => Boolean(each && typeof each === "object" && Object.keys(each).length === 1 && Number.isInteger(each.$file) && files?.[each.$file]);

  /** The parts of an object, where one of them is a table. */
  function withTables(doc) {
    const parts = doc && typeof doc === "object" && !Array.isArray(doc) ? Object.entries(doc) : [];
    return parts.length <= 20 && parts.some(([, each]) => asTable(each)) ? parts : null;
  }

  function value(name, preview, files) {
    const made = make("div", { class: "value" }, name ? make("p", { class: "name" }, theirs(name)) : null);
    if ("json" in preview) {
      const rows = asTable(preview.json), parts = withTables(preview.json);
      if (parts) return make("div", {}, made, parts.filter(([, each]) => !isFile(each, files)).map(([part, each]) => value(part, { json: each }, files)));
      if (rows) {
        made.append(table(...rows));
        if (preview.json.length > 200) made.append(make("p", { class: "note" }, `the first 200 of ${preview.json.length}`));
      } else {
        const named = (key, each) => isFile(each, files) ? "file " + files[each.$file].name : each;
        const text = typeof preview.json === "string" ? preview.json : JSON.stringify(preview.json, named, 2);
        made.append(block(name || "Result", text));
      }
    } else {
      made.append(block(name || "Result", preview.text));
      if (preview.of) made.append(make("p", { class: "note" }, `the beginning; all of it are ${preview.of} characters of JSON`));
    }
    return made;
  }

  function file(each) {
    const path = each.at && data.outputs + "/" + each.at;
    const link = path ? make("a", { href: path.split("/").map(encodeURIComponent).join("/"), rel: "noopener" }, theirs(each.name)) : theirs(each.name);
    const made = make("div", { class: "value" }, make("p", { class: "name" }, link, make("small", {}, each.count === undefined ? bytes(each.size) : `folder of ${each.count} files, ${bytes(each.size)}`)));
    if (each.picture) made.append(make("img", { src: details().pictures[each.picture], alt: `picture ${each.name}` }));
    if (each.table) made.append(table(each.table[0].map(theirs), each.table.slice(1).map((row) => row.map(theirs))));
    if (each.text) made.append(block(each.name, each.text));
    if (each.entries) made.append(table(["File", "Size"], each.entries.map(([name, size]) => [theirs(name), bytes(size)])));
    if (each.whole === false) made.append(make("p", { class: "note" }, "the beginning"));
    return made;
  }

  /** The lines of a log; of what terminals understand, only colours are left in it. */
  function log(text) {
    const made = make("pre", { class: "log", tabindex: "0", "aria-label": "Log" }), on = new Set();
    for (const [at, part] of text.split(/\x1b\[([0-9;]*)m/).entries()) {
      if (at % 2) {
        const codes = (part || "0").split(";").map(Number);
        for (let i = 0; i < codes.length; i++) {
          const code = codes[i];
          if (code === 0) on.clear();
          else if (code <= 4) on.add("s" + code);
          else if (code === 22) { on.delete("s1"); on.delete("s2"); }
          else if (code === 23 || code === 24) on.delete("s" + (code - 20));
          else if (code === 38 || code === 48) i += codes[i + 1] === 5 ? 2 : 4;
          else if ((code >= 30 && code <= 39) || (code >= 90 && code <= 97)) {
            for (const each of [...on]) if (each[0] === "c") on.delete(each);
            if (code % 10 < 8) on.add("c" + code % 10);
          }
        }
      } else if (part) made.append(on.size ? make("span", { class: [...on].join(" ") }, part) : visible(part));
    }
    return made;
  }

  function failure(story) {
    const made = make("section", { class: "failure" });
    const parts = [];
    for (let each = story; each; each = each.cause) parts.unshift(each);
    parts.forEach((each, at) => {
      made.append(make("h3", {}, at ? "which made the call of it fail: " : "", theirs(each.task), ", call " + (each.call || "that was not made")));
      made.append(make("p", { class: "message" }, make("strong", {}, theirs(each.code)), ": ", theirs(each.message)));
      if (each.why) made.append(make("p", {}, "why: ", theirs(each.why)));
      if (each.hint) made.append(make("p", {}, "hint: ", theirs(each.hint)));
      if (each.traceback) made.append(block("Traceback", each.traceback.trimEnd()));
    });
    return made;
  }

  const NAMES = { cpu_s: "CPU", peak_bytes: "peak memory", swept: "left processes", memory_share: "memory kept" };

  function evidence(found) {
    return Object.entries(found).filter(([name, each]) => each !== null && each !== 0 && !["cpu_s", "peak_bytes", "log", "gpus"].includes(name)).map(([name, each]) =>
      `${NAMES[name] || name.replace(/_bytes$/, "").replace(/_/g, " ")} ${typeof each === "number" && name.endsWith("bytes") ? bytes(each) : typeof each === "object" ? JSON.stringify(each) : each}`).join(", ");
  }

  /** What was seen of a device while an attempt had it. */
  function device(seen) {
    if (!seen) return "";
    const busy = seen.utilisation === undefined ? "" : `, ${Math.round(100 * seen.utilisation)} % busy`;
    return ` (at most ${bytes(seen.peak_bytes)}${busy})`;
  }

  function attempts(number, detail) {
    const call = calls[number];
    return table(["Attempt", "Outcome", "Began", "Ran", "CPU", "Memory", "Where"], detail.attempts.map(
      ([at, from, until, outcome, container, slot, gpus, limit, found]) => [
        String(at), outcome || call[STATUS], from === null ? "not at all" : "+" + seconds(from), seconds(from === null || until === null ? null : until - from), seconds(found.cpu_s),
        bytes(found.peak_bytes) + (limit ?? call[LIMIT] ? " of " + bytes(limit ?? call[LIMIT]) : ""),
        [[slot ? "slot " + slot : null, container ? "container " + container.slice(0, 12) : null, ...gpus.map((uuid) => uuid + device(found.gpus?.[uuid]))].filter(Boolean).join(", ") || "–",
          make("small", {}, theirs(evidence(found)))],
      ]), "attempts");
  }

  const FRAME = `<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">` +
    `<style>body { font: 15px/1.5 system-ui, sans-serif; margin: 1rem; background: #fff; color: #1c2430; } img, svg { max-width: 100%; height: auto; }
    table { border-collapse: collapse; } td, th { border: 1px solid #ccd3dc; padding: .25rem .6rem; text-align: left; } figure { margin: 0 0 1rem; }</style>`;

  /** What a task logged for people, in frames in which no script runs and from which nothing is fetched. */
  function report(tabs) {
    return section("Report", tabs.map(([name, html, size]) => make("div", { class: "value" },
      tabs.length > 1 || name !== "Report" ? make("p", { class: "name" }, theirs(name)) : null,
      html === null ? make("p", { class: "note" }, `${bytes(size)} are too much for this page; they are in the record of the run`)
        : make("iframe", { class: "report", sandbox: "", referrerpolicy: "no-referrer", title: "Report: " + visible(name), srcdoc: FRAME + html }))));
  }

  function open(number) {
    const call = calls[number], detail = details().calls[number], body = byId("call-body");
    const parent = call[PARENT] < 0 ? null : calls[call[PARENT]];
    byId("call-title").replaceChildren(theirs(task(call)), make("small", {}, "call " + call[ID]));
    const parts = [make("p", {}, status(call[STATUS]), ` · waited ${seconds(waited(call))} · ran ${seconds(call[SECONDS])}`)];
    if (parent) parts.push(make("p", {}, "called by ", make("a", { href: "#call=" + parent[ID] }, parent[ID] + " ", theirs(task(parent)))));
    if (detail.waiting) parts.push(make("p", {}, (call[STARTED] === null ? "it waits: " : "it waited: "), theirs(detail.waiting)));
    if (detail.origin) parts.push(make("p", {}, `not computed: run ${detail.origin.run} did, in its call ${detail.origin.call}`));
    if (detail.error) parts.push(failure(detail.error));
    if (detail.attempts.length) parts.push(section("Attempts", attempts(number, detail)));
    parts.push(...values(detail, make("div", { class: "values" })));
    if (detail.reports) parts.push(report(detail.reports));
    (detail.logs || []).forEach(([text, size, isCut], at) => {
      if (!size) return;
      const title = detail.logs.length > 1 ? `What attempt ${at + 1} printed` : "What it printed";
      const note = isCut ? make("p", { class: "note" }, `the end; all of it are ${bytes(size)}: run-local logs ${data.run} ${call[ID]}`) : null;
      parts.push(section(title, note, log(text)));
    });
    const inner = children[number];
    if (inner.length) {
      const first = inner.slice(0, 100).map((each) => make("li", {}, make("a", { href: "#call=" + calls[each][ID] }, calls[each][ID]), " ", theirs(task(calls[each])), " ", status(calls[each][STATUS])));
      parts.push(section(`Calls that it made: ${inner.length}`, make("ul", {}, first, inner.length > 100 ? make("li", {}, `and ${inner.length - 100} more`) : null)));
    }
    const environment = task(call).split(".")[0];
    const made = Object.hasOwn(data.environments, environment) ? data.environments[environment] : null;
    const asked = Object.entries(data.shapes[call[SHAPE]]).map(([name, each]) => `${name.replace(/_bytes$/, "").replace(/_/g, " ")} ${name.endsWith("bytes") ? bytes(each) : each}`);
    parts.push(section("Asked for", make("p", {}, asked.join(" · ") || "–"), made ? make("p", { class: "note" }, `Python ${made[0]}, environment key `, make("code", {}, made[1].slice(0, 12))) : null));
    body.replaceChildren(...parts);
    if (!byId("call").open) byId("call").showModal();
    byId("call").scrollTop = 0;
  }

  function values(detail, box) {
    const given = Object.entries(detail.arguments || {});
    const inputs = make("div", {}, make("h3", {}, "Inputs"), given.length ? given.map(([name, each]) => value(name, each)) : make("p", { class: "note" }, detail.arguments ? "none were given" : "they are not in the record"));
    const files = (detail.files || []).filter((each) => each.name);
    const result = make("div", {}, make("h3", {}, "Result"), detail.value ? value("", detail.value, detail.files) : make("p", { class: "note" }, detail.error ? "none: it failed" : "none"), files.map(file));
    box.append(inputs, result);
    return [box];
  }

  function follow() {
    const wanted = location.hash.match(/^#call=([\d.]+)$/);
    const number = wanted ? numberOf.get(wanted[1]) : undefined;
    if (number !== undefined) open(number);
    else if (byId("call").open) byId("call").close();
  }

  // -- packages ------------------------------------------------------------------------------------------------------

  function filterPackages() {
    const search = byId("packages");
    if (!search) return;
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      let count = 0;
      for (const each of document.querySelectorAll(".environment")) {
        let some = false;
        for (const one of each.querySelectorAll(".packages li")) {
          one.hidden = Boolean(wanted) && !one.textContent.toLowerCase().includes(wanted);
          some ||= !one.hidden;
          count += !one.hidden;
        }
        each.open = Boolean(wanted) && some;
      }
      byId("packages-found").textContent = wanted ? `${count} found` : "";
    });
  }

  listCalls();
  drawTimeline();
  filterPackages();
  values(details().calls[0], Object.assign(byId("root-values"), { className: "values" }));
  byId("close").addEventListener("click", () => byId("call").close());
  byId("call").addEventListener("close", () => { if (location.hash.startsWith("#call=")) history.replaceState(null, "", "#"); });
  byId("call").addEventListener("click", (event) => { if (event.target === byId("call")) byId("call").close(); });
  addEventListener("hashchange", follow);
  follow();
})();
