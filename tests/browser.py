"""A headless Chromium for tests, driven over a pair of pipes by the DevTools protocol: no library, no port."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WANTED = "chromium"
_ANSWER_S = 30.0
_END_S = 10.0
_KEY_CODES = {"Enter": 13, "Escape": 27, "Tab": 9, " ": 32}


class BrowserError(Exception):
    """The browser did not do what it was told."""


class Tab:
    """One page of a browser.

    Parameters
    ----------
    browser : Browser
        Its browser.
    session : str
        Of the protocol.
    """

    def __init__(self, browser: "Browser", session: str, target: str) -> None:
        self._browser = browser
        self._session = session
        self._target = target
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **options: Any) -> Any:
        """Send a command of the protocol, and give its result."""
        return self._browser.send(method, options, self._session)

    def open_another(self) -> "Tab":
        """Open a further tab of the same browser, in a window of its own: both are visible."""
        return self._browser.open_tab()

    def open(self, address: str, *, timeout_s: float = _ANSWER_S) -> None:
        """Open an address and wait until it is loaded."""
        self._browser.forget("Page.loadEventFired", self._session)
        found = self.send("Page.navigate", url=address)
        if "errorText" in found:
            raise BrowserError(f"{address}: {found['errorText']}")
        self._browser.wait_for("Page.loadEventFired", self._session, timeout_s)

    def evaluate(self, script: str) -> Any:
        """Run a script, wait for its promise, and give its value."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise BrowserError(json.dumps(found["exceptionDetails"])[:2000])
        return found["result"].get("value")

    def wait_until(self, script: str, *, timeout_s: float = 20.0) -> Any:
        """Wait until a script gives something true, and give that."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                if found := self.evaluate(script):
                    return found
            except BrowserError as exc:  # a page that is just being left
                if "context" not in str(exc).lower():
                    raise
            if time.monotonic() > deadline:
                raise BrowserError(f"never true within {timeout_s} s: {script}")
            time.sleep(0.05)

    def set_view(self, width: int, height: int, *, scheme: str = "light") -> None:
        """Set the size of the view, in CSS pixels, and whether the person likes it dark."""
        is_small = width < 500
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_small else 1,
            mobile=is_small,
        )
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        one = {"key": key, "windowsVirtualKeyCode": _KEY_CODES.get(key, ord(key[0].upper()))}
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **one, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **one)

    def shoot(self, file: Path) -> None:
        """Write a picture of what is in view."""
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def take_complaints(self) -> list[str]:
        """Give what the browser complained of since the last time: errors of scripts, of the policy, of addresses."""
        return self._browser.take_complaints(self._session)

    def close(self) -> None:
        """Close it."""
        self._browser.send("Target.closeTarget", {"targetId": self._target})


class Browser:
    """A running Chromium.

    Parameters
    ----------
    writes, reads : int
        File descriptors of the two pipes.
    """

    def __init__(self, writes: int, reads: int) -> None:
        self._writes = writes
        self._reads = reads
        self._number = 0
        self._rest = b""
        self._events: list[Mapping[str, Any]] = []

    def open_tab(self) -> Tab:
        """Open a tab in a window of its own: it is visible whichever others are open."""
        target = self.send("Target.createTarget", {"url": "about:blank", "newWindow": True})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        return Tab(self, session, target)

    def send(self, method: str, options: Mapping[str, Any] | None = None, session: str | None = None) -> Any:
        """Send a command and wait for its result."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": options or {}}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_S
        while True:
            found = self._read(deadline, method)
            if found.get("id") != number:
                self._events.append(found)
            elif "error" in found:
                raise BrowserError(f"{method}: {found['error']['message']}")
            else:
                return found["result"]

    def wait_for(self, event: str, session: str, timeout_s: float) -> None:
        """Wait for an event of a tab."""
        deadline = time.monotonic() + timeout_s
        while not any(one.get("method") == event and one.get("sessionId") == session for one in self._events):
            self._events.append(self._read(deadline, event))

    def forget(self, event: str, session: str) -> None:
        """Forget an event that has come."""
        self._events = [
            one for one in self._events if not (one.get("method") == event and one.get("sessionId") == session)
        ]

    def take_complaints(self, session: str) -> list[str]:
        """See `Tab.take_complaints`."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded"}
        found = [one for one in self._events if one.get("sessionId") == session and one.get("method") in kinds]
        self._events = []
        return [text for text in map(_read_complaint, found) if text]

    def _read(self, deadline: float, awaited: str) -> Any:
        while b"\0" not in self._rest:
            if time.monotonic() > deadline:
                raise BrowserError(f"no answer to {awaited}")
            piece = os.read(self._reads, 1 << 20)
            if not piece:
                raise BrowserError(f"the browser ended before it answered {awaited}")
            self._rest += piece
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


def _read_complaint(event: Mapping[str, Any]) -> str:
    if event["method"] == "Log.entryAdded":
        entry = event["params"]["entry"]
        return f"{entry['text']} {entry.get('url', '')}" if entry["level"] == "error" else ""
    return json.dumps(event["params"]["exceptionDetails"])[:500]


def find_browser() -> str | None:
    """Find Debian's Chromium; None where there is none."""
    return shutil.which(WANTED)


@contextmanager
def start_browser(profile: Path) -> Iterator[Browser]:
    """Run a Chromium with a profile of its own while the body runs.

    Parameters
    ----------
    profile : Path
        Its folder, which is made.
    """
    program = find_browser()
    if program is None:
        raise BrowserError(f"there is no {WANTED}")
    to_browser, from_browser = os.pipe(), os.pipe()

    def connect() -> None:  # the protocol's pipes are 3 and 4; what is moved away from there first is not lost
        reads, writes = os.dup(to_browser[0]), os.dup(from_browser[1])
        os.dup2(reads, 3)
        os.dup2(writes, 4)

    arguments = [
        program,
        "--headless=new",
        "--no-sandbox",
        "--remote-debugging-pipe",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--no-first-run",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    process = subprocess.Popen(
        arguments,
        preexec_fn=connect,  # noqa: PLW1509 - Popen can hand down descriptors, but not renumber them
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    browser = Browser(to_browser[1], from_browser[0])
    try:
        yield browser
    finally:
        try:
            browser.send("Browser.close")
            process.wait(_END_S)
        except (BrowserError, OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        os.close(to_browser[1])
        os.close(from_browser[0])
