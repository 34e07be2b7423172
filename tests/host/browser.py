"""A headless Chromium, driven over its DevTools protocol.

    with Browser() as browser:
        browser.open(server.url)
        browser.wait_for("window.app?.graph")
        browser.screenshot(path)

One tab, one connection, and a profile that is made and removed each time. The browser fetches nothing of its own.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import websocket

from .setup import chromium

FLAGS = (
    "--headless",
    "--no-sandbox",  # tests often run as root in a container, where Chromium's sandbox cannot
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class BrowserError(RuntimeError):
    """The browser did not start, the page raised, or what was waited for did not come."""


@dataclass(frozen=True)
class Message:
    """A line of the page's console, an uncaught error, or what the browser itself reports (failed loads)."""

    level: str
    text: str
    url: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.text}" + (f" ({self.url})" if self.url else "")


class Browser:
    """One tab. Entering the context starts Chromium, leaving it ends it.

    Args:
        size: width and height of the window in pixels.
        program: the browser; None finds one (``BOKEH_CHROMIUM``, else the PATH).
    """

    def __init__(self, size: tuple[int, int] = (1600, 1000), program: str | None = None) -> None:
        self.size = size
        self.program = program or chromium()
        self.messages: list[Message] = []
        self._profile = Path(tempfile.mkdtemp(prefix="bokeh-browser-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: websocket.WebSocket | None = None
        self._last_id = 0

    def __enter__(self) -> Browser:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if self.program is None:
            raise BrowserError("No Chromium found. Install one or name it in BOKEH_CHROMIUM.")
        width, height = self.size
        command = [
            self.program,
            *FLAGS,
            f"--user-data-dir={self._profile}",
            f"--window-size={width},{height}",
        ]
        with (self._profile / "browser.log").open("wb") as log:
            self._process = subprocess.Popen([*command, "about:blank"], stdout=log, stderr=log)
        port_file = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (port_file.exists() and port_file.read_text().strip()):
            if self._process.poll() is not None or time.monotonic() > deadline:
                log_text = (self._profile / "browser.log").read_text(errors="replace")
                raise BrowserError(f"{self.program} did not start. Its log ends:\n{log_text[-2000:]}")
            time.sleep(0.1)
        port = int(port_file.read_text().split()[0])
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
            page = next(target for target in json.load(answer) if target["type"] == "page")
        self._socket = websocket.create_connection(
            page["webSocketDebuggerUrl"], timeout=120, suppress_origin=True, http_no_proxy=["127.0.0.1"]
        )
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._profile, ignore_errors=True)

    # The protocol

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol; its result. Events that arrive meanwhile are noted."""
        assert self._socket is not None
        self._last_id += 1
        self._socket.send(json.dumps({"id": self._last_id, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv())
            if message.get("id") == self._last_id:
                if "error" in message:
                    raise BrowserError(f"{method}: {message['error'].get('message')}")
                return message["result"]
            self._note(message.get("method", ""), message.get("params", {}))

    def _note(self, event: str, data: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            words = [str(arg.get("value", arg.get("description", ""))) for arg in data["args"]]
            frames = data.get("stackTrace", {}).get("callFrames", [])
            self.messages.append(Message(data["type"], " ".join(words), frames[0]["url"] if frames else ""))
        elif event == "Runtime.exceptionThrown":
            details = data["exceptionDetails"]
            text = details.get("exception", {}).get("description") or details["text"]
            self.messages.append(Message("error", text, details.get("url", "")))
        elif event == "Log.entryAdded":
            entry = data["entry"]
            self.messages.append(Message(entry["level"], entry["text"], entry.get("url", "")))

    def errors(self) -> list[Message]:
        """Errors of the console, of scripts and of loading, so far."""
        self.evaluate("0")  # takes in the events that wait
        return [message for message in self.messages if message.level in {"error", "assert"}]

    # What a person does

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression (awaited if it is a promise), as JSON.

        Raises:
            BrowserError: it raised.
        """
        result = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            details = result["exceptionDetails"]
            said = details.get("exception", {}).get("description") or details["text"]
            raise BrowserError(f"{expression[:200]}\n  raised {said}")
        return result["result"].get("value")

    def wait_for(self, expression: str, timeout: float = 120) -> Any:
        """Evaluate again and again until the value is truthy; that value."""
        deadline = time.monotonic() + timeout
        while True:
            value = self.evaluate(
                f"(() => {{ try {{ return {expression} }} catch (e) {{ return null }} }})()"
            )
            if value:
                return value
            if time.monotonic() > deadline:
                raise BrowserError(f"Did not become true within {timeout:g} s: {expression}")
            time.sleep(0.1)

    def click(self, selector: str) -> None:
        """Click the middle of the first visible element of a CSS selector, with the mouse, once it rests uncovered."""
        where = (
            f"(() => {{ const found = [...document.querySelectorAll({json.dumps(selector)})]"
            ".find(e => e.getBoundingClientRect().width); found.scrollIntoView({block: 'center'}); "
            "const r = found.getBoundingClientRect(), at = [r.x + r.width / 2, r.y + r.height / 2]; "
            "return found.contains(document.elementFromPoint(...at)) && at })()"
        )
        box, before = self.wait_for(where), None
        while box != before:  # it may still be moving into place
            time.sleep(0.15)
            box, before = self.wait_for(where), box
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            pressed = 0 if kind == "mouseMoved" else 1
            self.call(
                "Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=pressed
            )

    def screenshot(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path
