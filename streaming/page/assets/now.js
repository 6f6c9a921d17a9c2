// Now: charts of the last half hour, and pieces of the view that the server makes anew each second.

import { onMessage, setClocks } from "./app.js";

const SPAN_S = 1800;
export const series = { rate: [[], []], lag: [[], []], latency: [[], [], []] };
const charts = {};

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function clock(seconds) {
  const at = new Date(seconds * 1000);
  return `${String(at.getHours()).padStart(2, "0")}:${String(at.getMinutes()).padStart(2, "0")}`;
}

/** The last half hour; less while less is known. */
function range() {
  const now = Date.now() / 1000;
  const first = Math.min(...[series.rate[0][0], series.latency[0][0]].filter((at) => at !== undefined), now - 300);
  return [Math.max(first, now - SPAN_S), now];
}

function options(box, lines) {
  const axis = {
    stroke: () => colour("--quiet"),
    grid: { stroke: () => colour("--line"), width: 1 },
    ticks: { show: false },
    font: "11px system-ui, sans-serif",
  };
  return {
    width: box.clientWidth,
    height: box.clientHeight,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 18, 0, 0],
    scales: {
      x: { time: true, range },
      y: { range: (_, __, most) => [0, Math.max(most * 1.1, 1)] },
    },
    axes: [
      { ...axis, space: 90, size: 22, gap: 4, values: (_, ticks) => ticks.map(clock) },
      { ...axis, size: 46, gap: 6, space: 34 },
    ],
    series: [
      {},
      ...lines.map((line) => ({
        stroke: () => colour("--accent"),
        width: 1.5,
        points: { show: false },
        spanGaps: false,
        ...line,
      })),
    ],
  };
}

function draw() {
  for (const [name, lines] of [
    ["rate", [{ fill: () => colour("--band") }]],
    ["lag", [{ fill: () => colour("--band") }]],
    ["latency", [{ points: { show: (chart) => chart.data[0].length < 4, size: 4 } }, { dash: [4, 3] }]],
  ]) {
    const box = document.getElementById(`chart-${name}`);
    charts[name]?.destroy();
    charts[name] = new uPlot(options(box, lines), series[name], box);
  }
}

function add(point) {
  const [at, rate, lag] = point;
  if (series.rate[0].at(-1) >= at) return;
  series.rate[0].push(at);
  series.rate[1].push(rate);
  series.lag[0].push(at);
  series.lag[1].push(lag);
}

let bucket = [];
function addLatency(outcomes) {
  for (const [at, seconds] of outcomes) {
    const start = Math.floor(at / 10) * 10;
    const [times, middles, longest] = series.latency;
    if (times.length && start < times.at(-1)) continue; // of another partition, late; the chart is of moments
    if (times.at(-1) !== start) {
      bucket = [];
      times.push(start);
      middles.push(null);
      longest.push(null);
    }
    bucket.push(seconds);
    bucket.sort((a, b) => a - b);
    middles[middles.length - 1] = bucket[Math.ceil(bucket.length * 0.5) - 1];
    longest[longest.length - 1] = bucket[Math.ceil(bucket.length * 0.95) - 1];
  }
}

function forget() {
  const first = Date.now() / 1000 - SPAN_S - 60;
  for (const columns of Object.values(series)) {
    const old = columns[0].findIndex((at) => at >= first);
    if (old > 0) for (const column of columns) column.splice(0, old);
  }
}

// -- what is new -----------------------------------------------------------------------------------------------------

const strip = document.getElementById("strip");
const says = document.getElementById("strip-says");
const shown = {};

onMessage((message) => {
  for (const [name, html] of Object.entries(message.now)) {
    if (shown[name] === html) continue;
    shown[name] = html;
    document.getElementById(`now-${name}`).innerHTML = html;
  }
  if (message.point) add(message.point);
  addLatency(message.latency);
  forget();
  for (const name of Object.keys(charts)) charts[name].setData(series[name]);
  showCards(message);
});

function showCards({ cards, first, last }) {
  if (!cards.length || strip.matches(":focus-within, :hover")) return;
  if (strip.querySelector("p")) strip.replaceChildren();
  const made = document.createElement("template");
  made.innerHTML = cards.slice(-6).reverse().join("");
  setClocks(made.content);
  const skipped = last - first - made.content.children.length;
  strip.prepend(made.content);
  for (const one of [...strip.children].slice(6)) one.remove();
  says.textContent = skipped > 0 ? `${skipped} more in this second are not shown` : "";
}

const answer = await fetch("/now/history");
if (answer.ok) {
  const history = await answer.json();
  // What came while it was asked for is in it, or is a moment old.
  for (const columns of Object.values(series)) for (const column of columns) column.length = 0;
  history.points.forEach(add);
  for (const [at, middle, longest] of history.latency) {
    series.latency[0].push(at);
    series.latency[1].push(middle);
    series.latency[2].push(longest);
  }
}
draw();
document.addEventListener("xray:theme", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(() => {
  for (const [name, chart] of Object.entries(charts)) {
    const box = document.getElementById(`chart-${name}`);
    chart.setSize({ width: box.clientWidth, height: box.clientHeight });
  }
}).observe(strip.parentElement);
