// One image: window, level, zoom, and the map over it.

import { onKey } from "./app.js";
import { loadPicture, paint } from "./pixels.js";

const el = (id) => document.getElementById(id);
const viewer = el("viewer");
const canvas = el("canvas");
const film = document.createElement("canvas");
const sliders = { level: el("level"), window: el("window"), zoom: el("zoom"), strength: el("strength") };
const overlay = el("overlay");
const invert = el("invert");
let picture = null;
let map = null;
let shift = { x: 0, y: 0 };
let isPainted = false;
let isAsked = false;

function begin() {
  const most = 2 ** picture.bits - 1;
  sliders.level.max = most;
  sliders.window.max = 1.5 * most;
  reset();
  el("over").hidden = true;
}

function reset() {
  if (!picture) return;
  sliders.level.value = (picture.low + picture.high) / 2;
  sliders.window.value = picture.high - picture.low;
  sliders.zoom.value = 0;
  shift = { x: 0, y: 0 };
  invert.setAttribute("aria-pressed", "false");
  repaint();
}

const isOn = (button) => button.getAttribute("aria-pressed") === "true";
const toggle = (button) => button.setAttribute("aria-pressed", String(!isOn(button)));

function repaint() {
  isPainted = false;
  redraw();
}

function redraw() {
  if (!picture || isAsked) return;
  isAsked = true;
  requestAnimationFrame(draw);
}

function draw() {
  isAsked = false;
  const level = Number(sliders.level.value);
  const window_ = Number(sliders.window.value);
  if (!isPainted) {
    paint(picture, film, level - window_ / 2, level + window_ / 2, isOn(invert));
    isPainted = true;
  }
  const ratio = devicePixelRatio || 1;
  const { width, height } = canvas.getBoundingClientRect();
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  const fit = Math.min(canvas.width / picture.width, canvas.height / picture.height);
  const scale = fit * 2 ** Number(sliders.zoom.value);
  const w = picture.width * scale;
  const h = picture.height * scale;
  // Some of the image stays in view.
  const room = { x: Math.max(0, (w - canvas.width) / 2) + canvas.width / 4, y: Math.max(0, (h - canvas.height) / 2) + canvas.height / 4 };
  shift.x = Math.min(Math.max(shift.x, -room.x), room.x);
  shift.y = Math.min(Math.max(shift.y, -room.y), room.y);
  const x = (canvas.width - w) / 2 + shift.x;
  const y = (canvas.height - h) / 2 + shift.y;
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = scale < 3;
  context.imageSmoothingQuality = "high";
  context.drawImage(film, x, y, w, h);
  if (map && isOn(overlay)) {
    context.imageSmoothingEnabled = true;
    context.globalAlpha = Number(sliders.strength.value);
    context.drawImage(map, x, y, w, h);
    context.globalAlpha = 1;
  }
  el("reading").textContent =
    `W ${Math.round(window_)} L ${Math.round(level)} of ${picture.bits} bits, ${picture.width} × ${picture.height}, ${Math.round((100 * scale) / ratio)} %`;
}

for (const name of ["level", "window"]) sliders[name].addEventListener("input", repaint);
for (const name of ["zoom", "strength"]) sliders[name].addEventListener("input", redraw);
invert.addEventListener("click", () => (toggle(invert), repaint()));
overlay.addEventListener("click", () => (toggle(overlay), redraw()));
el("reset").addEventListener("click", reset);
new ResizeObserver(redraw).observe(viewer);

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  const moves = event.shiftKey || event.button === 1;
  let { clientX, clientY } = event;
  const move = (now) => {
    const dx = now.clientX - clientX;
    const dy = now.clientY - clientY;
    ({ clientX, clientY } = now);
    if (moves || Number(sliders.zoom.value) > 0.5) {
      shift.x += dx * devicePixelRatio;
      shift.y += dy * devicePixelRatio;
      redraw();
    } else {
      const most = picture ? 2 ** picture.bits - 1 : 255;
      sliders.window.value = Number(sliders.window.value) + (dx * most) / 600;
      sliders.level.value = Number(sliders.level.value) - (dy * most) / 600;
      repaint();
    }
  };
  canvas.addEventListener("pointermove", move);
  canvas.addEventListener("lostpointercapture", () => canvas.removeEventListener("pointermove", move), { once: true });
});
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    zoom(event.deltaY < 0 ? 0.15 : -0.15);
  },
  { passive: false },
);
canvas.addEventListener("dblclick", reset);

function zoom(by) {
  sliders.zoom.value = Number(sliders.zoom.value) + by;
  redraw();
}
const pan = (x, y) => () => {
  shift.x += x;
  shift.y += y;
  redraw();
};
onKey("+", () => zoom(0.25));
onKey("=", () => zoom(0.25));
onKey("-", () => zoom(-0.25));
onKey("0", reset);
onKey("i", () => invert.click());
onKey("m", () => overlay.click());
onKey("ArrowLeft", pan(60, 0));
onKey("ArrowRight", pan(-60, 0));
onKey("ArrowUp", pan(0, 60));
onKey("ArrowDown", pan(0, -60));
onKey("j", () => el("older")?.click());
onKey("k", () => el("newer")?.click());

function findMap() {
  const found = el("map");
  if (!found || map) return;
  map = found;
  overlay.disabled = false;
  map.decode().then(redraw, () => (overlay.disabled = true));
}
document.addEventListener("htmx:afterSettle", findMap);

loadPicture(viewer.dataset.src).then(
  (loaded) => {
    picture = loaded;
    begin();
  },
  (error) => (el("over").textContent = error.message),
);
