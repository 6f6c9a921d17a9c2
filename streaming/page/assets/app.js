// Every view: theme, keys, clocks, and the one stream of events.

const root = document.documentElement;
export const csrf = document.body.dataset.csrf ?? "";

// -- theme --------------------------------------------------------------------------------------------------------

document.getElementById("theme").addEventListener("click", () => {
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("xray.theme", root.dataset.theme);
  document.dispatchEvent(new Event("xray:theme"));
});

// -- keys ---------------------------------------------------------------------------------------------------------

const keys = document.getElementById("keys");
const keysOn = document.getElementById("keys-on");
keysOn.checked = localStorage.getItem("xray.keys") !== "off";
keysOn.addEventListener("change", () => localStorage.setItem("xray.keys", keysOn.checked ? "on" : "off"));
document.getElementById("help").addEventListener("click", () => keys.showModal());

const actions = new Map();

/** Have a key do something, unless somebody types or has turned single keys off. */
export function onKey(key, action) {
  actions.set(key, action);
}

let wentAt = -Infinity;
const places = { n: "/", i: "/images", l: "/label", m: "/models" };
document.addEventListener("keydown", (event) => {
  const typed = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || keys.open || !keysOn.checked) return;
  if (typed instanceof HTMLInputElement && typed.type !== "range" && typed.type !== "checkbox") {
    if (event.key === "Escape") typed.blur();
    return;
  }
  if (typed instanceof HTMLSelectElement || typed instanceof HTMLTextAreaElement) return;
  const isSecond = performance.now() - wentAt < 1000;
  wentAt = -Infinity;
  if (isSecond && places[event.key]) {
    location.href = places[event.key];
    return;
  }
  if (event.key === "g") {
    wentAt = performance.now();
    return;
  }
  if (event.key === "?") {
    keys.showModal();
    return;
  }
  // What a focused thing does with a key comes first.
  const own = typed instanceof HTMLElement && typed.closest("button, a, summary") && (event.key === "Enter" || event.key === " ");
  const slides = typed instanceof HTMLInputElement && event.key.startsWith("Arrow");
  const action = actions.get(event.key);
  if (action && !own && !slides && !event.repeat) {
    event.preventDefault();
    action(event);
  } else if (action && !own && !slides && ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "+", "-"].includes(event.key)) {
    event.preventDefault();
    action(event);
  }
});

// -- times, in the browser's own zone ------------------------------------------------------------------------------

const two = (n) => String(n).padStart(2, "0");

/** Write the moments below an element as its reader's clock shows them; the texts keep their width. */
export function setClocks(below) {
  for (const one of below.querySelectorAll("time[data-clock], time[data-moment]")) {
    const at = new Date(one.dateTime);
    const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
    const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
    one.textContent = "moment" in one.dataset ? `${day} ${clock}` : clock;
  }
}
setClocks(document);
document.addEventListener("htmx:afterSettle", (event) => setClocks(event.target.parentElement ?? document));

// -- pictures that are not there ----------------------------------------------------------------------------------

document.addEventListener(
  "error",
  async (event) => {
    const image = event.target;
    if (!(image instanceof HTMLImageElement) || !image.closest(".film")) return;
    const why = document.createElement("span");
    image.replaceWith(why);
    try {
      const answer = await fetch(image.src, { cache: "force-cache" });
      why.textContent = answer.ok ? "no picture" : (await answer.text()).slice(0, 200);
    } catch {
      why.textContent = "no answer from the page's server";
    }
  },
  true,
);

// htmx shows no answer that is an error; these views do.
document.addEventListener("htmx:beforeSwap", (event) => {
  const { xhr } = event.detail;
  if (xhr.status === 401) location.reload();
  else if (xhr.status >= 400) event.detail.shouldSwap = true;
});
document.addEventListener("htmx:sendError", (event) => {
  if (event.detail.elt.matches(".waiting")) event.detail.elt.textContent = "No answer from the page's server; load the view again.";
});

// -- the stream of events: one for all tabs of a browser, none of a hidden one --------------------------------------

const live = document.getElementById("live");
const listeners = new Set();
// A browser has six connections for a host, and a stream keeps one: a seventh visible tab would wait for ever. So one
// tab has the stream, whoever holds the lock, and tells the others; all of them are told the same.
const others = new BroadcastChannel("xray.page");
let wish = null;
let source = null;
let lastTurn = 0;
let missed = 0;

/** Have a function called with each message; `{turn, missed, ...}` as the server made it. */
export function onMessage(listener) {
  listeners.add(listener);
}

function say(state, text) {
  if (!live || (live.dataset.state === state && live.textContent === text)) return;
  live.dataset.state = state;
  live.textContent = text;
}

function hear({ turn, message, trouble }) {
  if (!wish) return;
  if (trouble) {
    say("away", trouble);
    return;
  }
  if (turn === lastTurn) return; // told again, as another tab took over
  if (lastTurn && turn > lastTurn + 1) missed += turn - lastTurn - 1;
  lastTurn = turn;
  say("live", missed ? `live, ${missed} turns missed` : message.says);
  // Not in the middle of a frame, and not for a tab that has been hidden meanwhile.
  requestAnimationFrame(() => {
    if (!document.hidden) for (const listener of listeners) listener(message);
  });
}
others.onmessage = (event) => hear(event.data);

function tell(what) {
  hear(what);
  others.postMessage(what);
}

function connect() {
  source = new EventSource("/events");
  source.onmessage = (event) => tell({ turn: Number(event.lastEventId), message: JSON.parse(event.data) });
  source.onerror = () => {
    const isOver = source.readyState === EventSource.CLOSED;
    tell({ trouble: isOver ? "too many open pages, or logged out" : "no answer; trying again" });
    if (isOver) {
      setTimeout((then) => wish === then && connect(), 15_000, wish);
    }
  };
}

function follow() {
  if (wish || document.hidden) return;
  wish = new AbortController();
  const { signal } = wish;
  if (!navigator.locks) {
    connect(); // without TLS, on another machine, a browser has none
    return;
  }
  const hold = () =>
    new Promise((release) => {
      signal.addEventListener("abort", release);
      connect();
    });
  navigator.locks.request("xray.page", { signal }, hold).catch((error) => {
    if (error.name !== "AbortError") throw error;
  });
}

function rest() {
  source?.close();
  source = null;
  lastTurn = 0;
  wish?.abort();
  wish = null;
}

if (live) {
  follow();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      rest();
      say("still", "not followed while hidden");
    } else {
      missed = 0;
      follow();
    }
  });
  addEventListener("pagehide", rest);
  addEventListener("pageshow", follow);
}
