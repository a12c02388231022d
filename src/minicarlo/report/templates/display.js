// Single showers beside their nearest neighbours. Cells are drawn into pixels with a depth buffer of our own, so that the
// picture is the same with and without a GPU. Lengths in mm, angles in rad, energies in MeV; z is the axis of the shower.

const FIRST_VIEW = { turn: 0.6, tilt: 0.35, zoom: 1 }; // as in display.py
const VIEWS = { oblique: FIRST_VIEW, side: { turn: 0, tilt: 0, zoom: 1 }, front: { turn: -Math.PI / 2, tilt: 0, zoom: 1 } };
const LARGEST_ZOOM = 8;
const LIGHT = [-0.35, 0.75, -0.55]; // right, up, away from the viewer
const FURTHEST_ARC = 0.2; // angle that a straight edge may stand for; as in display.py
const REASONS = ["", " · closest of all", " · farthest of all"]; // as in display.py
const PIXELS = 2; // in each direction for one of CSS: the browser's averaging smooths the edges
const [LINE, INK] = ["#9aa1ab", "#5b626c"];

const root = document.querySelector(".display");
const data = JSON.parse(root.querySelector("script").textContent);
const [layers, n1, n2] = data.shape;
const [dz, d1, d2] = data.cell;
const depth = layers * dz;
const round = data.grid === "cylindrical";
const halves = round ? [n2 * d2, n2 * d2] : [(n1 * d1) / 2, (n2 * d2) / 2];
const footprints = Array.from({ length: n1 * n2 }, (_, cell) => footprint(Math.floor(cell / n2), cell % n2));
const lines = outline();
const showers = data.showers.map(unpack);
const control = Object.fromEntries([...root.querySelectorAll("[name]")].map((element) => [element.name, element]));
const camera = { ...FIRST_VIEW };

// ---- The data

function unpack(shower) {
  const Index = layers * n1 * n2 <= 2 ** 16 ? Uint16Array : Uint32Array;
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
  return { ...shower, cells: new Index(bytes(shower.cells)), codes: new Uint16Array(bytes(shower.codes)) };
}

function energyOf(code) {
  return data.threshold * 10 ** (code / data.codesPerDecade);
}

function chosen() {
  const candidate = data.candidates[control.candidate.value];
  const [generated, neighbour, distance] = candidate.pairs[control.shower.value];
  return { generated: showers[generated], neighbour: showers[neighbour], distance, scale: candidate.scale };
}

// ---- The detector

/** A transverse cell: its middle, and the quadrilaterals it is made of, corners counter-clockwise, with outward normals. */
function footprint(i, j) {
  const quads = round ? sector(i, j) : [rectangle((i - n1 / 2) * d1, (j - n2 / 2) * d2)];
  const corners = quads.flat();
  const mean = (axis) => corners.reduce((sum, corner) => sum + corner[axis], 0) / corners.length;
  return { x: mean(0), y: mean(1), quads: quads.map((quad) => ({ corners: quad, normals: quad.map(normal) })) };
}

function rectangle(x, y) {
  return [[x, y], [x + d1, y], [x + d1, y + d2], [x, y + d2]];
}

function sector(i, j) {
  const parts = Math.ceil(d1 / FURTHEST_ARC);
  const at = (ring, part) => [Math.cos((i + part / parts) * d1), Math.sin((i + part / parts) * d1)].map((x) => x * ring * d2);
  return Array.from({ length: parts }, (_, part) => [at(j + 1, part), at(j + 1, part + 1), at(j, part + 1), at(j, part)]);
}

function normal([x, y], k, quad) {
  const [nextX, nextY] = quad[(k + 1) % 4];
  const length = Math.hypot(nextX - x, nextY - y) || 1;
  return [(nextY - y) / length, (x - nextX) / length];
}

/** Lines around the detector: both ends, and four along the shower. */
function outline() {
  const corners = round ? 64 : 4;
  const stretch = round ? 1 : Math.SQRT2;
  const around = Array.from({ length: corners + 1 }, (_, k) => {
    const phi = (2 * Math.PI * (k + 0.5)) / corners;
    return [stretch * halves[0] * Math.cos(phi), stretch * halves[1] * Math.sin(phi)];
  });
  const ends = [0, depth].map((z) => around.map(([x, y]) => [x, y, z]));
  const along = [0, 1, 2, 3].map((k) => around[(k * corners) / 4]).map(([x, y]) => [[x, y, 0], [x, y, depth]]);
  return [...ends, ...along];
}

// ---- Drawing

/** Rows that turn (x, y, z) into (right, up, away from the viewer). */
function rotation({ turn, tilt }) {
  const [c, s, ct, st] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
  return [[s, 0, c], [c * st, ct, -s * st], [c * ct, -st, -s * ct]];
}

class View {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.points = new Float64Array(24); // eight corners of a prism: x, y in pixels (y downwards), depth
  }

  /** Draw the cells that `shown(code, layer)` accepts; returns their number and energy. `focus`: the depth zoomed at. */
  draw(shower, shown, focus) {
    this.clear();
    const [right, up, away] = rotation(camera);
    const radius = Math.hypot(depth / 2, ...halves);
    this.scale = (0.56 * camera.zoom * Math.min(this.width, this.height)) / radius;
    const middle = depth / 2 + (focus - depth / 2) * (1 - 1 / camera.zoom);
    this.rows = [right, up.map((value) => -value), away].map((row) => row.map((value) => value * this.scale));
    this.origin = [this.width / 2, this.height / 2, 0].map((value, axis) => value - this.rows[axis][2] * middle);
    this.light = [0, 1, 2].map((axis) => LIGHT[0] * right[axis] + LIGHT[1] * up[axis] + LIGHT[2] * away[axis]);
    let [cells, energy] = [0, 0];
    shower.cells.forEach((place, k) => {
      const [code, layer] = [shower.codes[k], Math.floor(place / footprints.length)];
      if (!shown(code, layer)) return;
      cells += 1;
      energy += energyOf(code);
      this.prism(footprints[place % footprints.length], layer, code / data.top);
    });
    this.context.putImageData(this.image, 0, 0);
    this.frame();
    return { cells, energy };
  }

  clear() {
    const [width, height] = [this.canvas.clientWidth * PIXELS, this.canvas.clientHeight * PIXELS];
    if (width !== this.width || height !== this.height) {
      [this.width, this.height] = [this.canvas.width, this.canvas.height] = [width, height];
      this.image = new ImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer); // bytes red, green, blue, alpha
      this.depths = new Float32Array(width * height);
    }
    this.pixels.fill(0);
    this.depths.fill(Infinity);
  }

  /** A cell, shrunk the more the weaker it is; `strength` from 0 (threshold) to 1. */
  prism({ x: middleX, y: middleY, quads }, layer, strength) {
    const size = 0.4 + 0.6 * strength;
    const color = data.colors[Math.min(data.colors.length - 1, Math.floor(strength * data.colors.length))];
    const near = (layer + 0.5 - size / 2) * dz;
    for (const { corners, normals } of quads) {
      for (let k = 0; k < 4; k++) {
        const x = middleX + size * (corners[k][0] - middleX);
        const y = middleY + size * (corners[k][1] - middleY);
        this.project(k, x, y, near);
        this.project(k + 4, x, y, near + size * dz);
      }
      this.quad(3, 2, 1, 0, this.shaded(color, -this.light[2]));
      this.quad(4, 5, 6, 7, this.shaded(color, this.light[2]));
      for (let k = 0; k < 4; k++) {
        const next = (k + 1) % 4;
        this.quad(k, next, next + 4, k + 4, this.shaded(color, normals[k][0] * this.light[0] + normals[k][1] * this.light[1]));
      }
    }
  }

  project(corner, x, y, z) {
    for (let axis = 0; axis < 3; axis++) {
      const row = this.rows[axis];
      this.points[3 * corner + axis] = this.origin[axis] + row[0] * x + row[1] * y + row[2] * z;
    }
  }

  shaded([red, green, blue], towardsLight) {
    const brightness = 0.72 + 0.28 * Math.max(0, towardsLight);
    return ((255 << 24) | ((blue * brightness) << 16) | ((green * brightness) << 8) | (red * brightness)) >>> 0;
  }

  /** Fill the quadrilateral of four of the corners where nothing is nearer, unless it shows its back. */
  quad(a, b, c, d, color) {
    const { points, width, height, pixels, depths } = this;
    const [x0, y0, z0, y1] = [points[3 * a], points[3 * a + 1], points[3 * a + 2], points[3 * b + 1]];
    const [y2, y3] = [points[3 * c + 1], points[3 * d + 1]];
    const [ux, uy, uz] = [points[3 * c] - x0, y2 - y0, points[3 * c + 2] - z0]; // the diagonals
    const [vx, vy, vz] = [points[3 * d] - points[3 * b], y3 - y1, points[3 * d + 2] - points[3 * b + 2]];
    const area = ux * vy - uy * vx;
    if (area > -0.01) return;
    const slopeX = (uz * vy - vz * uy) / area;
    const slopeY = (vz * ux - uz * vx) / area;
    const lastRow = Math.min(height, Math.ceil(Math.max(y0, y1, y2, y3) - 0.5));
    const corners = [a, b, c, d, a];
    for (let row = Math.max(0, Math.ceil(Math.min(y0, y1, y2, y3) - 0.5)); row < lastRow; row++) {
      const y = row + 0.5;
      let [left, right] = [Infinity, -Infinity];
      for (let k = 0; k < 4; k++) {
        const [p, q] = [3 * corners[k], 3 * corners[k + 1]];
        if (points[p + 1] > y === points[q + 1] > y) continue;
        const x = points[p] + ((y - points[p + 1]) * (points[q] - points[p])) / (points[q + 1] - points[p + 1]);
        left = Math.min(left, x);
        right = Math.max(right, x);
      }
      const end = Math.min(width, Math.ceil(right - 0.5));
      for (let column = Math.max(0, Math.ceil(left - 0.5)); column < end; column++) {
        const z = z0 + (column + 0.5 - x0) * slopeX + (y - y0) * slopeY;
        const place = row * width + column;
        if (z < depths[place]) {
          depths[place] = z;
          pixels[place] = color;
        }
      }
    }
  }

  /** Behind the cells: the detector, the incident direction, and a bar of known length. */
  frame() {
    const { context, points } = this;
    const path = (line) => {
      context.beginPath();
      for (const [x, y, z] of line) {
        this.project(0, x, y, z);
        context.lineTo(points[0], points[1]);
      }
      context.stroke();
    };
    context.globalCompositeOperation = "destination-over";
    context.lineWidth = 0.8 * PIXELS;
    context.strokeStyle = LINE;
    lines.forEach(path);
    context.strokeStyle = INK;
    const [tip, shaft, barb] = [-0.02 * depth, -0.2 * depth, 0.025 * depth];
    path([[0, 0, shaft], [0, 0, tip]]);
    for (const [x, y] of [[barb, 0], [0, barb]]) path([[x, y, tip - 2 * barb], [0, 0, tip], [-x, -y, tip - 2 * barb]]);
    const length = [100, 50, 20, 10, 5, 2, 1].find((mm) => mm * this.scale < 0.25 * this.width) ?? 1;
    const [x, y] = [8 * PIXELS, this.height - 8 * PIXELS];
    context.strokeRect(x, y, length * this.scale, 0);
    context.fillStyle = INK;
    context.font = `${12 * PIXELS}px sans-serif`;
    context.fillText(`${length} mm`, x, y - 5 * PIXELS);
  }
}

/** The colour bar above the slider of the threshold, on the same scale. */
function drawBar(canvas) {
  const context = canvas.getContext("2d");
  const [width, height] = [(canvas.width = canvas.clientWidth * PIXELS), (canvas.height = canvas.clientHeight * PIXELS)];
  const middle = height / 2;
  for (let x = 0; x < width; x++) {
    context.fillStyle = `rgb(${data.colors[Math.floor((x / width) * data.colors.length)]})`;
    context.fillRect(x, middle, 1, middle);
  }
  context.fillStyle = INK;
  context.font = `${11 * PIXELS}px sans-serif`;
  context.textAlign = "center";
  for (let exponent = -3; exponent < 6; exponent++) {
    const x = (width * data.codesPerDecade * Math.log10(10 ** exponent / data.threshold)) / data.top;
    if (x < 0.02 * width || x > 0.98 * width) continue;
    context.fillRect(x, middle - 4 * PIXELS, PIXELS, 4 * PIXELS);
    context.fillText(`${10 ** exponent}`, x, middle - 6 * PIXELS);
  }
}

// ---- The page

const digits = new Intl.NumberFormat("en", { minimumSignificantDigits: 2, maximumSignificantDigits: 3 });
const energy = (mev) => (mev < 1000 ? `${digits.format(mev)} MeV` : `${digits.format(mev / 1000)} GeV`);
const views = Object.fromEntries([...root.querySelectorAll("canvas[data-of]")].map((canvas) => [canvas.dataset.of, new View(canvas)]));

function write(name, text) {
  for (const element of root.querySelectorAll(`[data-value="${name}"]`)) element.textContent = text;
}

function draw() {
  const pair = chosen();
  const cut = Number(control.threshold.value);
  const [first, last] = [control.first, control.last].map((slider) => slider.value - 1).sort((one, other) => one - other);
  const shown = (code, layer) => code >= cut && layer >= first && layer <= last;
  const focus = centre(pair.neighbour);
  for (const [name, view] of Object.entries(views)) {
    const shower = pair[name];
    const drawn = view.draw(shower, shown, focus);
    Object.assign(view.canvas.dataset, { ...camera, event: shower.event, cells: drawn.cells });
    write(`${name}-event`, shower.event.toLocaleString("en"));
    write(`${name}-incident`, energy(shower.incident));
    write(`${name}-visible`, energy(shower.visible));
    write(`${name}-cells`, shower.count.toLocaleString("en"));
    write(`${name}-drawn-cells`, drawn.cells.toLocaleString("en"));
    write(`${name}-drawn-energy`, energy(drawn.energy));
  }
  write("distance", digits.format(pair.distance));
  write("scale", pair.scale === null ? "–" : digits.format(pair.scale));
  write("threshold", energy(energyOf(cut)));
  write("first", first + 1);
  write("last", last + 1);
  write("zoom", digits.format(camera.zoom));
}

/** Depth of the centre of energy. */
function centre(shower) {
  let [sum, moment] = [0, 0];
  shower.cells.forEach((place, k) => {
    const value = energyOf(shower.codes[k]);
    sum += value;
    moment += value * (Math.floor(place / footprints.length) + 0.5) * dz;
  });
  return sum ? moment / sum : depth / 2;
}

let scheduled = 0;
function redraw() {
  cancelAnimationFrame(scheduled);
  scheduled = requestAnimationFrame(draw);
}

/** Offer the showers of the candidate, keeping the place in the list. */
function list(place) {
  const options = data.candidates[control.candidate.value].pairs.map(([generated, , , reason], k) => {
    const { incident, event } = showers[generated];
    return new Option(`${energy(incident)} · event ${event.toLocaleString("en")}${REASONS[reason]}`, k);
  });
  control.shower.replaceChildren(...options);
  control.shower.selectedIndex = Math.min(place, options.length - 1);
  write("label", control.candidate.selectedOptions[0].textContent);
}

function look({ turn = camera.turn, tilt = camera.tilt, zoom = camera.zoom }) {
  camera.turn = turn;
  camera.tilt = Math.max(-Math.PI / 2, Math.min(Math.PI / 2, tilt));
  camera.zoom = Math.max(1, Math.min(LARGEST_ZOOM, zoom));
  control.zoom.value = Math.log2(camera.zoom);
  redraw();
}

/** Turn to a view, in a third of a second unless the reader wants no motion. */
function turnTo(view) {
  const start = { ...camera, time: performance.now() };
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const step = (now) => {
    const part = still ? 1 : Math.min(1, Math.max(0, now - start.time) / 300);
    const between = (name) => start[name] + (view[name] - start[name]) * part;
    look({ turn: between("turn"), tilt: between("tilt"), zoom: between("zoom") });
    if (part < 1) requestAnimationFrame(step);
  };
  step(start.time);
}

const KEYS = {
  ArrowLeft: () => look({ turn: camera.turn + 0.1 }),
  ArrowRight: () => look({ turn: camera.turn - 0.1 }),
  ArrowUp: () => look({ tilt: camera.tilt - 0.1 }),
  ArrowDown: () => look({ tilt: camera.tilt + 0.1 }),
  "+": () => look({ zoom: camera.zoom * 1.2 }),
  "=": () => look({ zoom: camera.zoom * 1.2 }),
  "-": () => look({ zoom: camera.zoom / 1.2 }),
  0: () => turnTo(FIRST_VIEW),
};

/** One finger or the mouse turns, two fingers zoom. */
function listen(canvas) {
  const pointers = new Map();
  const spread = () => {
    const [one, other] = [...pointers.values()];
    return Math.hypot(one.x - other.x, one.y - other.y);
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    const was = pointers.size === 2 ? spread() : 0;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    if (pointers.size === 2) {
      look({ zoom: (camera.zoom * spread()) / (was || 1) });
    } else {
      look({ turn: camera.turn - (event.clientX - before.x) / 150, tilt: camera.tilt + (event.clientY - before.y) / 150 });
    }
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
  const onWheel = (event) => {
    if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls
    event.preventDefault();
    look({ zoom: camera.zoom * 2 ** (-event.deltaY / 300) });
  };
  canvas.addEventListener("wheel", onWheel, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (!(event.key in KEYS) || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    KEYS[event.key]();
  });
}

root.classList.add("running");
control.threshold.max = data.top;
control.zoom.max = Math.log2(LARGEST_ZOOM);
for (const slider of [control.first, control.last]) slider.max = layers;
control.last.value = layers;
list(data.first);
for (const view of Object.values(views)) listen(view.canvas);
for (const name of ["threshold", "first", "last", "shower"]) control[name].addEventListener("input", redraw);
control.zoom.addEventListener("input", () => look({ zoom: 2 ** control.zoom.value }));
control.candidate.addEventListener("input", () => {
  list(control.shower.selectedIndex);
  redraw();
});
for (const button of root.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => turnTo(VIEWS[button.dataset.view]));
}
new ResizeObserver(([{ contentRect }]) => {
  if (!contentRect.width) return; // on paper the still picture is shown
  drawBar(root.querySelector(".bar"));
  draw();
}).observe(root.querySelector(".live"));
