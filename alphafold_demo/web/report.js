"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const { scores, residues } = DATA;
const BANDS = [
  [90, "#0053d6", "very high (90 and above)"],
  [70, "#65cbf3", "high (70 to 90)"],
  [50, "#ffdb13", "low (50 to 70)"],
  [0, "#ff7d45", "very low (below 50)"],
];
const CHAIN_COLOURS = { H: "#2b6cb0", L: "#c05621" };
const CDR_COLOURS = { H1: "#1b9e77", H2: "#7570b3", H3: "#d9318a", L1: "#66a61e", L2: "#b8860b", L3: "#d95f02" };
const PLAIN = "#c3cbd3";
const INK = "#1d2733";
const FARTHEST = 40; // Å, the far end of the colours of the distance map
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const band = (plddt) => BANDS.find(([least]) => plddt >= least)[1];
const chainName = (letter) => (letter === "H" ? "heavy chain" : "light chain");

function element(parent, tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

function shape(parent, tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  parent.append(made);
  return made;
}

function nameOf(residue) {
  const cdr = residue.cdr ? `, CDR-${residue.cdr}` : "";
  return `${residue.chain} ${residue.residue}${residue.number} (IMGT ${residue.imgt}${cdr})`;
}

// ---- the structure -------------------------------------------------------------------------------------------------

const view = { colour: "confidence", sides: false, reference: DATA.reference !== null };
const keyed = new Map(residues.map((residue) => [residue.chain + residue.number, residue]));
let viewer = null;
let models = {};
let mark = null;

function colourOf(atom) {
  const residue = keyed.get(atom.chain + atom.resi);
  if (!residue) return PLAIN;
  if (view.colour === "chain") return CHAIN_COLOURS[residue.chain];
  if (view.colour === "cdr") return CDR_COLOURS[residue.cdr] || PLAIN;
  return band(residue.plddt);
}

function paint() {
  models.predicted.setStyle({}, { cartoon: { colorfunc: colourOf, thickness: 0.35, arrows: true } });
  if (view.sides) {
    const loops = (atom) => (keyed.get(atom.chain + atom.resi) || {}).cdr;
    models.predicted.setStyle(
      { predicate: loops },
      { cartoon: { colorfunc: colourOf, thickness: 0.35, arrows: true }, stick: { colorfunc: colourOf, radius: 0.14 } },
    );
  }
  if (models.reference) {
    const look = { cartoon: { color: "#aab3bc", opacity: 0.65, thickness: 0.3, arrows: true } };
    models.reference.setStyle({}, view.reference ? look : {});
  }
  viewer.render();
}

function point(residue) {
  if (!viewer) return;
  if (mark) viewer.removeShape(mark);
  const [atom] = models.predicted.selectedAtoms({ chain: residue.chain, resi: residue.number, atom: "CA" });
  mark = atom && viewer.addSphere({ center: atom, radius: 1.6, color: "#e6007e", opacity: 0.75 });
  viewer.render();
}

function legend() {
  const shown = {
    confidence: BANDS.map(([, colour, words]) => [colour, words]),
    chain: Object.entries(CHAIN_COLOURS).map(([letter, colour]) => [colour, chainName(letter)]),
    cdr: Object.entries(CDR_COLOURS).map(([cdr, colour]) => [colour, `CDR-${cdr}`]),
  }[view.colour];
  const list = byId("legend");
  list.replaceChildren();
  for (const [colour, words] of DATA.reference ? [...shown, ["#aab3bc", "reference"]] : shown) {
    const item = element(list, "span");
    element(item, "i", { style: `background:${colour}` });
    item.append(words);
  }
}

function press(button, pressed) {
  button.setAttribute("aria-pressed", String(pressed));
}

function buttons() {
  const reference = byId("show-reference");
  reference.disabled = DATA.reference === null;
  press(reference, view.reference);
  reference.onclick = () => {
    view.reference = !view.reference;
    press(reference, view.reference);
    paint();
  };
  byId("show-sides").onclick = (event) => {
    view.sides = !view.sides;
    press(event.target, view.sides);
    paint();
  };
  for (const button of document.querySelectorAll("[data-colour]")) {
    button.onclick = () => {
      view.colour = button.dataset.colour;
      for (const other of document.querySelectorAll("[data-colour]")) press(other, other === button);
      legend();
      paint();
    };
  }
  byId("reset").onclick = () => {
    if (mark) viewer.removeShape(mark);
    look();
  };
}

function look() {
  viewer.setView([0, 0, 0, 0, 0, 0, 0, 1]);
  viewer.zoomTo();
  const { clientWidth: width, clientHeight: height } = byId("viewer");
  viewer.zoom(1.15 * Math.min(1, width / height)); // `zoomTo` fits the height only
  viewer.render();
}

/** Draw the structure; answers with how many pixels of the picture are not background. */
function drawStructure() {
  viewer = $3Dmol.createViewer(byId("viewer"), { backgroundColor: "white", antialias: true });
  if (!viewer) throw new Error("this browser cannot draw in three dimensions (no WebGL)");
  models.predicted = viewer.addModel(DATA.structure, "pdb");
  if (DATA.reference) models.reference = viewer.addModel(DATA.reference, "pdb");
  paint();
  look();
  return paintedPixels();
}

function paintedPixels() {
  const drawn = byId("viewer").querySelector("canvas");
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [drawn.width, drawn.height];
  const context = copy.getContext("2d", { willReadFrequently: true });
  viewer.render(); // in this very turn: what is drawn is gone from the canvas once it is on the screen
  context.drawImage(drawn, 0, 0);
  const { data } = context.getImageData(0, 0, copy.width, copy.height);
  let painted = 0;
  for (let at = 0; at < data.length; at += 4) {
    if (data[at + 3] > 0 && Math.min(data[at], data[at + 1], data[at + 2]) < 240) painted += 1;
  }
  return painted;
}

// ---- the numbers ---------------------------------------------------------------------------------------------------

function header() {
  byId("lede").textContent = `Structure of an antibody's variable fragment, predicted from its sequence with ${scores.predictor} on ${scores.device}.`;
  const notice = byId("notice");
  element(notice, "strong", {}, `${scores.statement}. `);
  notice.append(scores.reference ? scores.reference.caveat : "There is no reference structure for this antibody.");
}

function numbers() {
  const list = byId("numbers");
  const add = (name, value, note) => {
    const card = element(list, "div");
    element(card, "dt", {}, name);
    element(element(card, "dd", {}, value), "small", {}, note);
  };
  add("Mean pLDDT", scores.mean_plddt.toFixed(1), `${residues.length} residues; 0 to 100`);
  if (scores.cdr_plddt.H3) add("CDR-H3 pLDDT", scores.cdr_plddt.H3.toFixed(1), "the loop that is hardest to predict");
  if (!scores.reference) return;
  const { ca_rmsd: rmsd, lddt_ca: lddt, residues: count, name, cdr_ca_rmsd: loops } = scores.reference;
  add("Cα RMSD", `${rmsd.toFixed(2)} Å`, `to ${name}; ${count} residues, CDR-H3 ${(loops.H3 ?? NaN).toFixed(1)} Å`);
  add("lDDT-Cα", lddt.toFixed(1), "share of local distances kept; 0 to 100");
}

function details() {
  const table = byId("details");
  const add = (name, value) => {
    const row = element(table, "tr");
    element(row, "th", { scope: "row" }, name);
    element(row, "td", {}, value);
  };
  for (const chain of scores.chains) {
    const kind = chain.kind === "heavy" ? "heavy chain" : `${chain.kind} light chain`;
    add(`Chain ${chain.chain}`, `record ${chain.record}: ${kind}, ${chain.residues} residues from ${chain.start} on, ${chain.trimmed} trimmed; ${chain.germline}`);
  }
  const loops = Object.entries(scores.cdr_plddt).map(([name, value]) => `${name} ${value.toFixed(0)}`);
  add("pLDDT of the CDRs", loops.join(", "));
  if (scores.reference) {
    const off = Object.entries(scores.reference.cdr_ca_rmsd).map(([name, value]) => `${name} ${value.toFixed(1)}`);
    add("Cα RMSD of the CDRs (Å)", `${off.join(", ")}; after superposing all residues`);
  }
  const { relaxation } = scores;
  if (scores.structure === "relaxed") {
    add("Relaxation", `OpenMM, amber14, heavy atoms held in place: they moved ${relaxation.moved.toFixed(2)} Å; clashes ${relaxation.clashes_before} → ${relaxation.clashes_after}; `
      + `peptide bonds ${relaxation.shortest_peptide_bond_before.toFixed(2)}–${relaxation.longest_peptide_bond_before.toFixed(2)} Å → `
      + `${relaxation.shortest_peptide_bond_after.toFixed(2)}–${relaxation.longest_peptide_bond_after.toFixed(2)} Å`);
  } else {
    add("Relaxation", "none; bond lengths are as the network left them");
  }
  add("Weights (SHA-256)", scores.weights_sha256);
}

// ---- the strips ----------------------------------------------------------------------------------------------------

function strips() {
  if (scores.reference) byId("line-note").textContent = " Line: true lDDT-Cα against the reference.";
  for (const letter of ["H", "L"]) strip(letter, residues.filter((residue) => residue.chain === letter));
}

function strip(letter, mine) {
  const box = element(byId("strips"), "div", { class: "strip" });
  element(box, "h3", {}, `${letter}: ${chainName(letter)}`);
  const names = element(box, "div", { class: "names" });
  const plot = element(box, "div", { class: "plot" });
  const svg = shape(plot, "svg", { viewBox: `0 0 ${mine.length} 100`, preserveAspectRatio: "none", role: "img" });
  shape(svg, "title").textContent = `pLDDT along the ${chainName(letter)}`;
  for (const cdr of new Set(mine.map((residue) => residue.cdr).filter(Boolean))) {
    const inside = mine.filter((residue) => residue.cdr === cdr);
    const first = inside[0].number - 1;
    shape(svg, "rect", { x: first, y: 0, width: inside.length, height: 100, fill: "#d5dce3" });
    const middle = (100 * (first + inside.length / 2)) / mine.length;
    element(names, "span", { style: `left:${middle}%` }, cdr);
  }
  mine.forEach((residue, at) => {
    const { plddt } = residue;
    shape(svg, "rect", { x: at + 0.06, y: 100 - plddt, width: 0.88, height: plddt, fill: band(plddt) });
  });
  for (const level of [50, 70, 90]) {
    shape(svg, "line", { x1: 0, x2: mine.length, y1: 100 - level, y2: 100 - level, stroke: "#fff", "stroke-opacity": 0.6, "vector-effect": "non-scaling-stroke" });
    element(plot, "span", { class: "tick", style: `top:${100 - level}%` }, String(level));
  }
  const known = mine.filter((residue) => residue.lddt !== null);
  if (known.length) {
    const points = known.map((residue) => `${residue.number - 0.5},${100 - residue.lddt}`).join(" ");
    for (const [stroke, width] of [["#fff", 4], [INK, 1.8]]) {
      shape(svg, "polyline", { points, fill: "none", stroke, "stroke-width": width, "vector-effect": "non-scaling-stroke" });
    }
  }
  onPoint(svg, (across) => {
    const residue = mine[Math.min(mine.length - 1, Math.floor(across * mine.length))];
    const truth = residue.lddt === null ? "" : `, lDDT-Cα ${residue.lddt.toFixed(1)}`;
    byId("strip-readout").textContent = `${nameOf(residue)}: pLDDT ${residue.plddt.toFixed(1)}${truth}`;
    point(residue);
  });
}

/** Call back with where on a drawing the mouse or a finger is, as shares of its width and height. */
function onPoint(target, act) {
  const tell = (event) => {
    const box = target.getBoundingClientRect();
    const across = (event.clientX - box.left) / box.width;
    const down = (event.clientY - box.top) / box.height;
    if (across >= 0 && across < 1 && down >= 0 && down < 1) act(across, down);
  };
  target.addEventListener("pointermove", tell);
  target.addEventListener("pointerdown", tell);
}

// ---- distances -----------------------------------------------------------------------------------------------------

/** From dark blue (near) through teal and yellow to white (far); `share` from 0 to 1. */
function heat(share) {
  const stops = [[27, 32, 89], [33, 102, 158], [65, 171, 163], [199, 226, 150], [255, 255, 240]];
  const place = Math.min(1, share) * (stops.length - 1);
  const first = Math.min(stops.length - 2, Math.floor(place));
  return stops[first].map((value, at) => Math.round(value + (place - first) * (stops[first + 1][at] - value)));
}

/** The Cα of each residue of a model; null for residues that it lacks. */
function calphas(model, shift) {
  const found = new Map(model.selectedAtoms({ atom: "CA" }).map((atom) => [atom.chain + atom.resi, atom]));
  return residues.map((residue) => found.get(shift(residue)) || null);
}

const apart = (a, b) => (a && b ? Math.hypot(a.x - b.x, a.y - b.y, a.z - b.z) : null);

function distances() {
  const mine = calphas(models.predicted, (residue) => residue.chain + residue.number);
  const known = models.reference ? calphas(models.reference, (residue) => residue.reference) : null;
  const count = residues.length;
  const canvas = byId("distances");
  [canvas.width, canvas.height] = [count, count];
  const context = canvas.getContext("2d");
  const image = context.createImageData(count, count);
  for (let row = 0; row < count; row += 1) {
    for (let column = 0; column < count; column += 1) {
      const source = known && row > column ? known : mine;
      const far = apart(source[row], source[column]);
      image.data.set(far === null ? [225, 225, 225, 255] : [...heat(far / FARTHEST), 255], 4 * (row * count + column));
    }
  }
  context.putImageData(image, 0, 0);
  const border = residues.filter((residue) => residue.chain === "H").length;
  context.fillStyle = "rgba(230, 0, 126, .8)";
  context.fillRect(0, border, count, 1);
  context.fillRect(border, 0, 1, count);
  byId("distance-note").textContent = known
    ? "Between all Cα atoms. Above the diagonal: predicted; below: reference. Lines part the chains."
    : "Between all Cα atoms, as predicted. Lines part the chains.";
  const stops = Array.from({ length: 9 }, (_, at) => `rgb(${heat(at / 8).join(",")})`);
  byId("distance-scale").style.background = `linear-gradient(to right, ${stops.join(",")})`;
  onPoint(canvas, (across, down) => {
    const [row, column] = [Math.floor(down * count), Math.floor(across * count)];
    const there = known ? apart(known[row], known[column]) : null;
    const truth = there === null ? "" : `, reference ${there.toFixed(1)} Å`;
    byId("distance-readout").textContent = `${nameOf(residues[row])} to ${nameOf(residues[column])}: ${apart(mine[row], mine[column]).toFixed(1)} Å${truth}`;
    point(residues[column]);
  });
}

// ---- backbone angles -----------------------------------------------------------------------------------------------

const [LEFT, TOP, WIDE, HIGH] = [-225, -192, 430, 425]; // degrees, with room for the labels

function angles() {
  const svg = shape(byId("angles"), "svg", { viewBox: `${LEFT} ${TOP} ${WIDE} ${HIGH}`, role: "img" });
  shape(svg, "title").textContent = "Ramachandran plot";
  shape(svg, "rect", { x: -180, y: -180, width: 360, height: 360, fill: "#fbfcfd", stroke: "#b8c2cc" });
  for (const at of [-120, -60, 0, 60, 120]) {
    const stroke = at === 0 ? "#9aa5b1" : "#e7ebef";
    shape(svg, "line", { x1: at, x2: at, y1: -180, y2: 180, stroke });
    shape(svg, "line", { y1: at, y2: at, x1: -180, x2: 180, stroke });
  }
  const write = (x, y, text, attributes = {}) => {
    shape(svg, "text", { x, y, "font-size": 13, fill: "#56616d", "text-anchor": "middle", ...attributes }).textContent = text;
  };
  for (const at of [-180, -90, 0, 90, 180]) {
    write(at, 198, `${at}°`);
    write(-186, -at + 4, `${at}°`, { "text-anchor": "end" });
  }
  write(0, 222, "φ");
  write(-214, 4, "ψ");
  for (const [phi, psi, text] of [[-165, 75, "β"], [-125, -75, "αR"], [75, 75, "αL"]]) {
    write(phi, -psi, text, { "font-size": 18, fill: "#aab4be" });
  }
  const shown = residues.filter((residue) => residue.phi !== null && residue.psi !== null);
  for (const residue of shown) {
    const [x, y] = [residue.phi, -residue.psi];
    const look = { fill: band(residue.plddt), stroke: INK, "stroke-width": 0.6 };
    if (residue.residue === "G") shape(svg, "path", { d: `M${x} ${y - 5}l4.6 8h-9.2z`, ...look });
    else shape(svg, "circle", { cx: x, cy: y, r: 3.8, ...look });
  }
  onPoint(svg, (across, down) => {
    const [x, y] = [across * WIDE + LEFT, down * HIGH + TOP];
    const off = (residue) => Math.hypot(residue.phi - x, -residue.psi - y);
    const nearest = shown.reduce((best, residue) => (off(residue) < off(best) ? residue : best));
    if (off(nearest) > 12) return;
    byId("angle-readout").textContent = `${nameOf(nearest)}: φ ${nearest.phi.toFixed(0)}°, ψ ${nearest.psi.toFixed(0)}°`;
    point(nearest);
  });
}

// ---- the sequence --------------------------------------------------------------------------------------------------

function sequences() {
  for (const letter of ["H", "L"]) {
    const line = element(byId("sequences"), "p", { class: "sequence" });
    line.append(`${letter} `);
    for (const residue of residues.filter((each) => each.chain === letter)) {
      const about = `${nameOf(residue)}, pLDDT ${residue.plddt.toFixed(0)}`;
      const made = element(line, "b", { title: about, style: `border-color:${band(residue.plddt)}` }, residue.residue);
      if (residue.cdr) made.className = "cdr";
      made.onclick = () => point(residue);
    }
  }
}

// ---- all of it -----------------------------------------------------------------------------------------------------

function report() {
  header();
  numbers();
  details();
  strips();
  angles();
  sequences();
  legend();
  try {
    const painted = drawStructure();
    if (painted < 1000) throw new Error(`only ${painted} pixels of the structure were drawn`);
    buttons();
    distances();
    document.title = `rendered: ${scores.title}, ${residues.length} residues`;
  } catch (error) {
    byId("viewer").className = "failed";
    byId("viewer").textContent = `The structure could not be drawn: ${error.message}. It is in the PDB file beside this page.`;
    document.title = `not rendered: ${error.message}`;
  }
}

report();
