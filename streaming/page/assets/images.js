// The grid: keys, and new images, which come in only when they are asked for, so that nothing moves under a pointer.

import { onKey, onMessage, setClocks } from "./app.js";

const MOST = 60;
const search = document.getElementById("q");
const fresh = document.getElementById("new");
const follow = document.getElementById("follow");
const cards = () => [...document.querySelectorAll("#results .card")];

onKey("/", () => search.focus());
onKey("j", () => step(1));
onKey("k", () => step(-1));
onKey("f", () => follow.click());

function step(by) {
  const all = cards();
  const at = all.indexOf(document.activeElement);
  all[Math.min(Math.max(at + by, 0), all.length - 1)]?.focus();
}

let waiting = []; // HTML of cards, newest last; as many as the grid holds
let arrived = 0;
let seen = Number(document.getElementById("results").dataset.newest);
const isPlain = () => document.getElementById("results").dataset.plain === "yes";

follow.setAttribute("aria-pressed", String(sessionStorage.getItem("xray.follow") === "yes"));
follow.addEventListener("click", () => {
  const isOn = follow.getAttribute("aria-pressed") !== "true";
  follow.setAttribute("aria-pressed", String(isOn));
  sessionStorage.setItem("xray.follow", isOn ? "yes" : "no");
  if (isOn) show();
});
fresh.addEventListener("click", show);

onMessage((message) => {
  if (message.run !== document.getElementById("results").dataset.run) {
    fresh.disabled = false; // the page was started again, and counts anew
    fresh.textContent = "load anew";
    arrived = waiting.length + 1;
    return;
  }
  if (message.last <= seen) return;
  // Of a message that is partly known already, the newest cards are new.
  waiting.push(...message.cards.slice(-(message.last - seen)));
  arrived += message.last - seen;
  seen = message.last;
  waiting = waiting.slice(-MOST);
  if (!arrived) return;
  if (isPlain() && follow.getAttribute("aria-pressed") === "true" && !document.querySelector("#results :focus")) show();
  else {
    fresh.disabled = false;
    fresh.textContent = `${arrived} new: show`;
  }
});

function show() {
  if (!arrived) return;
  const grid = document.getElementById("grid");
  if (!isPlain() || !grid || fresh.textContent === "load anew") {
    location.reload();
    return;
  }
  const skipped = arrived - waiting.length;
  const made = document.createElement("template");
  made.innerHTML = waiting.reverse().join("");
  setClocks(made.content);
  grid.prepend(made.content);
  for (const one of cards().slice(MOST)) one.remove();
  fresh.textContent = skipped > 0 ? `${waiting.length} shown, ${skipped} skipped` : "no new images";
  fresh.disabled = true;
  waiting = [];
  arrived = 0;
}

document.addEventListener("htmx:afterSwap", () => {
  waiting = [];
  arrived = 0;
  seen = Number(document.getElementById("results").dataset.newest);
  fresh.disabled = true;
  fresh.textContent = "no new images";
});
