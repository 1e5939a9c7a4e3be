"""A headless Chromium, driven over a pipe by its DevTools protocol: what tests of pages need, and no more."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def executable() -> str | None:
    """Return the path of a Chromium, or None if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One window. Attributes: `console`, what pages wrote; `errors`, exceptions; `requests`, addresses asked for."""

    def __init__(self, timeout: float = 60.0) -> None:
        self.timeout = timeout
        self.console: list[str] = []
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        self._number = 0
        self._rest = b""

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(prefix="leanconv-chromium-", ignore_cleanup_errors=True)
        command_read, self._write = os.pipe()
        self._read, reply_write = os.pipe()
        switches = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        switches += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        switches += ["--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"]
        # Chromium reads commands from descriptor 3 and answers on 4, whatever numbers the pipes have here.
        script = f'exec "$@" 3<&{command_read} 4>&{reply_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", executable() or "chromium", *switches],
            pass_fds=(command_read, reply_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(reply_write)
        self._session = None
        pages = self.send("Target.getTargets")["targetInfos"]
        page = next(target for target in pages if target["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._session = None
            self.send("Browser.close")
            self._process.wait(10)
        except (OSError, TimeoutError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            os.close(self._write)
            os.close(self._read)
            self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a file in a window of a size and wait until it is drawn."""
        mobile = width < 600
        self.send(
            *("Emulation.setDeviceMetricsOverride",),
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": mobile},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + self.timeout
        while "Page.loadEventFired" not in self._events:
            if time.monotonic() > end:
                raise TimeoutError(f"{path} was not loaded")
            self._receive()
        # Two frames later sizes that scripts watch for have been told to them.
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def evaluate(self, expression: str) -> Any:
        """Return the value of JavaScript; a promise's when it is there."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return done["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        text = {"Enter": "\r", " ": " "}.get(key, "")
        code = {"Enter": 13, "Tab": 9, " ": 32, "Escape": 27, "ArrowRight": 39}[key]
        press = {"key": key, "windowsVirtualKeyCode": code}
        self.send("Input.dispatchKeyEvent", type="keyDown", text=text, **press)
        self.send("Input.dispatchKeyEvent", type="keyUp", **press)

    def screenshot(self, path: Path) -> None:
        """Write a picture of the whole page, also of what is outside the window."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))

    def _receive(self) -> dict[str, Any]:
        """Return the next message, after taking note of what it tells."""
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], self.timeout)
            part = os.read(self._read, 1 << 16) if ready else b""
            if not part:
                raise TimeoutError("Chromium does not answer" if not ready else "Chromium has ended")
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, about: dict[str, Any]) -> None:
        self._events.append(method)
        if method == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(item.get("value")) for item in about["args"]))
        elif method == "Log.entryAdded":
            self.console.append(about["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(about["request"]["url"])
