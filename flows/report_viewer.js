// Draws each <canvas class="crystal"> of the report: atoms, bonds and cell, painted back to front.
// Drag or use the arrow keys to turn, double-click to go back.
"use strict";

const START = multiply(rotation(0, -1.35), rotation(2, 0.35)); // a to the right, b away, c up
const SPLIT = 8; // pieces of a cell edge, each sorted by its own depth

function rotation(axis, angle) {
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const [i, j] = [(axis + 1) % 3, (axis + 2) % 3];
  const matrix = [[0, 0, 0], [0, 0, 0], [0, 0, 0]];
  matrix[axis][axis] = 1;
  matrix[i][i] = matrix[j][j] = c;
  matrix[j][i] = s;
  matrix[i][j] = -s;
  return matrix;
}

function apply(matrix, v) {
  return matrix.map((row) => row[0] * v[0] + row[1] * v[1] + row[2] * v[2]);
}

function multiply(a, b) {
  return a.map((row) => [0, 1, 2].map((j) => row[0] * b[0][j] + row[1] * b[1][j] + row[2] * b[2][j]));
}

function between(a, b, t) {
  return a.map((x, i) => x + (b[i] - x) * t);
}

function shade(colour, factor) { // below 1 darker, above 1 lighter
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const mixed = parts.map((x) => (factor < 1 ? x * factor : x + (255 - x) * (factor - 1)));
  return `rgb(${mixed.map(Math.round).join(",")})`;
}

function cellEdges(cell) { // [from, to, axis or -1]; the three from the origin are the axes
  const corner = (i, j, k) => [0, 1, 2].map(
    (x) => (i - 0.5) * cell[0][x] + (j - 0.5) * cell[1][x] + (k - 0.5) * cell[2][x]);
  const edges = [];
  for (let axis = 0; axis < 3; axis++) {
    for (const [u, v] of [[0, 0], [0, 1], [1, 0], [1, 1]]) {
      const from = [u, v], to = [u, v];
      from.splice(axis, 0, 0);
      to.splice(axis, 0, 1);
      edges.push([corner(...from), corner(...to), u + v ? -1 : axis]);
    }
  }
  return edges;
}

class Viewer {
  constructor(canvas) {
    this.canvas = canvas;
    this.scene = JSON.parse(document.getElementById(canvas.dataset.scene).textContent);
    this.edges = cellEdges(this.scene.cell);
    const reach = this.scene.atoms.map(
      (atom) => Math.hypot(...atom.slice(1)) + this.scene.elements[atom[0]][2]);
    this.size = Math.max(...reach, ...this.edges.map((edge) => Math.hypot(...edge[0])));
    this.turn = START;
    this.listen();
    this.draw();
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (canvas.hasPointerCapture(event.pointerId)) this.rotate(event.movementX, event.movementY);
    });
    canvas.addEventListener("dblclick", () => { this.turn = START; this.draw(); });
    canvas.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [-12, 0], ArrowRight: [12, 0], ArrowUp: [0, -12], ArrowDown: [0, 12] };
      if (!(event.key in move)) return;
      event.preventDefault();
      this.rotate(...move[event.key]);
    });
  }

  rotate(right, down) {
    this.turn = multiply(multiply(rotation(1, right / 100), rotation(0, down / 100)), this.turn);
    this.draw();
  }

  draw() {
    const pixels = this.canvas.clientWidth * Math.max(2, window.devicePixelRatio);
    this.canvas.width = this.canvas.height = pixels;
    this.pen = this.canvas.getContext("2d");
    this.pen.translate(pixels / 2, pixels / 2);
    this.scale = (0.47 * pixels) / this.size;
    this.pen.lineCap = "round";
    this.pieces().sort((a, b) => a.depth - b.depth).forEach((piece) => piece.paint());
  }

  pieces() { // y is up, and z comes out of the screen
    const { elements, atoms, bonds } = this.scene;
    const at = atoms.map((atom) => apply(this.turn, atom.slice(1)));
    const found = at.map((point, i) => ({
      depth: point[2], paint: () => this.ball(point, ...elements[atoms[i][0]].slice(1)),
    }));
    for (const [i, j] of bonds) { // two halves, each from within its atom's surface
      const middle = between(at[i], at[j], 0.5);
      for (const one of [i, j]) {
        const [, colour, radius] = elements[atoms[one][0]];
        const half = Math.hypot(...middle.map((x, k) => x - at[one][k]));
        const start = between(at[one], middle, Math.min(1, (0.9 * radius) / half));
        found.push({
          depth: (start[2] + middle[2]) / 2,
          paint: () => this.line(start, middle, shade(colour, 0.85), 0.16 * this.scale),
        });
      }
    }
    for (const [from, to, axis] of this.edges) {
      const [a, b] = [apply(this.turn, from), apply(this.turn, to)];
      const colour = ["#c0392b", "#2e8b57", "#2c6fbb"][axis] ?? "#8a939b";
      const width = this.canvas.width / (axis < 0 ? 330 : 200);
      for (let k = 0; k < SPLIT; k++) {
        const [p, q] = [between(a, b, k / SPLIT), between(a, b, (k + 1) / SPLIT)];
        found.push({ depth: (p[2] + q[2]) / 2, paint: () => this.line(p, q, colour, width) });
      }
    }
    return found;
  }

  line(from, to, colour, width) {
    this.pen.strokeStyle = colour;
    this.pen.lineWidth = width;
    this.pen.beginPath();
    this.pen.moveTo(from[0] * this.scale, -from[1] * this.scale);
    this.pen.lineTo(to[0] * this.scale, -to[1] * this.scale);
    this.pen.stroke();
  }

  ball(point, colour, radius) {
    const [x, y, r] = [point[0] * this.scale, -point[1] * this.scale, radius * this.scale];
    const light = this.pen.createRadialGradient(x - r / 3, y - r / 3, r / 10, x, y, r);
    light.addColorStop(0, shade(colour, 1.7));
    light.addColorStop(0.45, colour);
    light.addColorStop(1, shade(colour, 0.62));
    this.pen.fillStyle = light;
    this.pen.beginPath();
    this.pen.arc(x, y, r, 0, 2 * Math.PI);
    this.pen.fill();
  }
}

document.querySelectorAll("canvas.crystal").forEach((canvas) => new Viewer(canvas));
