// Say what an image shows: one key, the next image at once, saved behind.
//
// Each answer is an entry of the browser's own store before anything is sent, and leaves it once the server has it. Its
// number is made here, once: a repetition after a lost answer is the same to the server, so nothing is entered twice.

import { csrf, onKey } from "./app.js";
import { loadPicture, paint } from "./pixels.js";

const PREFIX = "xray.answer.";
const AHEAD = 6;
const el = (id) => document.getElementById(id);
const board = el("labelling");

const entries = () =>
  Object.keys(localStorage)
    .filter((key) => key.startsWith(PREFIX))
    .map((key) => ({ key, ...JSON.parse(localStorage.getItem(key)) }))
    .filter((one) => one.person === board.dataset.person)
    .sort((a, b) => a.said_at.localeCompare(b.said_at) || a.turn - b.turn);

const queue = []; // images to come: {image, picture: Promise}
const done = []; // images that were answered or skipped here, the last one last
const known = new Set(); // events that were here already
let now = null;
let turn = 0;
let said = 0;
let saved = 0;
let isSending = false;
let isFetching = false;
let isOver = false;
let isInverted = false;
let wait = 500;

if (board) begin();

function begin() {
  for (const button of el("answers").querySelectorAll("[data-label]")) {
    button.addEventListener("click", () => answer(button.dataset.label));
    onKey(button.querySelector("kbd").textContent, () => answer(button.dataset.label));
  }
  onKey("Enter", () => now && answer(now.image.label));
  el("skip").addEventListener("click", () => next(true));
  onKey("s", () => next(true));
  el("undo").addEventListener("click", back);
  onKey("u", back);
  onKey("i", () => {
    isInverted = !isInverted;
    show();
  });
  el("which").value = sessionStorage.getItem("xray.which") ?? "undecided";
  el("which").addEventListener("change", () => {
    sessionStorage.setItem("xray.which", el("which").value);
    for (const one of queue.splice(0)) known.delete(one.image.event_id);
    isOver = false;
    fetchMore();
  });
  addEventListener("online", send);
  for (const one of entries()) known.add(one.event_id);
  count();
  send();
  next(false);
}

// -- images -------------------------------------------------------------------------------------------------------

function next(isSkipped) {
  if (isSkipped && !now) return;
  if (now) done.push(now);
  if (done.length > 50) done.shift();
  now = queue.shift() ?? null;
  el("undo").disabled = !done.length;
  show();
  fetchMore();
}

function back() {
  if (!done.length) return;
  if (now) queue.unshift(now);
  now = done.pop();
  el("undo").disabled = !done.length;
  show();
}

async function fetchMore() {
  if (isFetching || isOver || queue.length >= AHEAD) return;
  isFetching = true;
  try {
    const answer = await fetch(`${board.dataset.queue}?which=${el("which").value}`, {
      method: "POST",
      headers: { "content-type": "application/json", "x-csrf-token": csrf },
      body: JSON.stringify({ known: [...known].slice(-1000) }),
    });
    if (!answer.ok) throw new Error(await answer.text());
    const found = (await answer.json()).images.filter((image) => !known.has(image.event_id));
    isOver = found.length === 0;
    for (const image of found) {
      known.add(image.event_id);
      const picture = loadPicture(image.picture);
      picture.catch(() => {}); // said where the image is shown
      queue.push({ image, picture });
    }
  } catch (error) {
    trouble(`No images to come: ${error.message}`);
    setTimeout(fetchMore, 3000);
  } finally {
    isFetching = false;
  }
  if (!now && queue.length) next(false);
  else if (!now) show();
  if (isOver) setTimeout(() => ((isOver = false), fetchMore()), 5000); // new ones may have come
}

async function show() {
  const asked = now;
  el("model-says").textContent = asked ? asked.image.label : "–";
  el("model-score").textContent = asked ? asked.image.score : "";
  el("about").textContent = asked ? [asked.image.image_id, asked.image.source, ...asked.image.flags].filter(Boolean).join(", ") : "\u00a0";
  for (const button of el("answers").querySelectorAll("[data-label]")) {
    const isModels = asked && button.dataset.label === asked.image.label;
    button.setAttribute("aria-pressed", String(Boolean(isModels)));
    button.disabled = !asked;
  }
  const over = el("over");
  if (!asked) {
    over.hidden = false;
    over.textContent = isOver ? "Nothing is left to ask about. New images come by themselves." : "reading…";
    return;
  }
  const timer = setTimeout(() => {
    over.textContent = "reading…";
    over.hidden = false;
  }, 120);
  try {
    const picture = await asked.picture;
    if (asked !== now) return;
    paint(picture, el("canvas"), picture.low, picture.high, isInverted);
    over.hidden = true;
  } catch (error) {
    if (asked !== now) return;
    over.textContent = error.message;
    over.hidden = false;
  } finally {
    clearTimeout(timer);
    if (asked === now && over.textContent === "reading…") over.hidden = true;
  }
}

// -- answers ------------------------------------------------------------------------------------------------------

function answer(label) {
  if (!now) return;
  const request = newId();
  const entry = {
    request_id: request,
    event_id: now.image.event_id,
    label,
    person: board.dataset.person,
    said_at: new Date().toISOString(),
    turn: turn++,
  };
  try {
    localStorage.setItem(PREFIX + request, JSON.stringify(entry));
  } catch {
    trouble("The browser has no room to keep an answer. Wait until those before it are saved, then say it again.");
    return;
  }
  said++;
  note(entry, now.image);
  count();
  send();
  next(false);
}

/** A number of an answer's own; crypto.randomUUID is missing where the page speaks plain HTTP to another machine. */
function newId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (one) => one.toString(16).padStart(2, "0")).join("");
}

async function send() {
  if (isSending) return;
  isSending = true;
  try {
    for (let all = entries(); all.length; all = entries()) {
      const { key, turn: _, person: __, ...entry } = all[0];
      let answer;
      try {
        answer = await fetch("/label", {
          method: "POST",
          headers: { "content-type": "application/json", "x-csrf-token": csrf },
          body: JSON.stringify(entry),
        });
      } catch {
        later("The page's server does not answer. What you say is kept here, and sent when it does.");
        return;
      }
      if (answer.status === 422 || answer.status === 404) {
        // It will never be taken: said, and not tried for ever.
        localStorage.removeItem(key);
        mark(entry.request_id, "refused");
        trouble(`Not saved: ${(await answer.text()).slice(0, 300)}`);
      } else if (answer.ok) {
        localStorage.removeItem(key);
        saved++;
        wait = 500;
        mark(entry.request_id, "saved");
        trouble("\u00a0");
      } else {
        const why = (await answer.text().catch(() => "")).slice(0, 300);
        later(
          answer.status === 401 || answer.status === 403
            ? `${why} Load this view again; what you said is kept here.`
            : `Not saved yet (${answer.status}): ${why} What you say is kept here, and sent again.`,
        );
        return;
      }
      count();
    }
  } finally {
    isSending = false;
  }
}

function later(why) {
  trouble(why);
  count();
  setTimeout(send, wait);
  wait = Math.min(2 * wait, 10_000);
}

// -- what is shown of them ------------------------------------------------------------------------------------------

function count() {
  el("n-said").textContent = said;
  el("n-waiting").textContent = entries().length;
  el("n-saved").textContent = saved;
}

function trouble(text) {
  if (el("trouble").textContent !== text) el("trouble").textContent = text;
  el("trouble").classList.toggle("warn", text.trim() !== "");
}

function note(entry, image) {
  const line = document.createElement("li");
  line.dataset.request = entry.request_id;
  const [name, label, state] = ["span", "strong", "span"].map((tag) => line.appendChild(document.createElement(tag)));
  name.className = "cut quiet";
  name.textContent = image.image_id ?? image.event_id;
  label.textContent = entry.label;
  state.textContent = "…";
  el("past").prepend(line);
  while (el("past").children.length > 6) el("past").lastChild.remove();
}

function mark(request, text) {
  const line = el("past").querySelector(`[data-request="${request}"]`);
  if (line) line.lastChild.textContent = text;
}
