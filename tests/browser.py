"""Chromium without a screen, driven through its debugging pipe, for tests that look at a page as a person would.

Example:
    with Browser.open(tmp_path) as browser:
        browser.go("http://127.0.0.1:6006/#audio")
        browser.wait_for("document.title === 'TensorBoard'")
        browser.screenshot(tmp_path / "page.png")
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--mute-audio")
# Every element of the page, also those inside shadow roots, which tools like TensorBoard are made of.
ALL_ELEMENTS = """(() => {
    const found = [], visit = (root) => root.querySelectorAll('*').forEach((element) => {
        found.push(element);
        if (element.shadowRoot) visit(element.shadowRoot);
    });
    visit(document);
    return found;
})()"""


def executable() -> str | None:
    """The installed Chromium, if any."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page. `complaints`: errors and warnings that it wrote to its console, or that loading gave, so far."""

    def __init__(self, commands: IO[bytes], answers: IO[bytes]) -> None:
        self._commands, self._answers, self._number, self._session = commands, answers, 0, ""
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Runtime.enable"), self._call("Log.enable")

    @staticmethod
    @contextlib.contextmanager
    def open(directory: Path, width: int = 1400, height: int = 3400) -> Iterator["Browser"]:
        """Start Chromium with its profile in `directory`; it reads commands from descriptor 3 and answers on 4."""
        command_end, our_command_end = os.pipe()
        our_answer_end, answer_end = os.pipe()
        pipes = f'exec "$@" 3<&{command_end} 4>&{answer_end}'
        words = [*FLAGS, f"--user-data-dir={directory / 'profile'}", f"--window-size={width},{height}"]
        process = subprocess.Popen(
            ["bash", "-c", pipes, "bash", str(executable()), *words, "--remote-debugging-pipe", "about:blank"],
            pass_fds=(command_end, answer_end),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_end), os.close(answer_end)
        try:
            with os.fdopen(our_command_end, "wb") as commands, os.fdopen(our_answer_end, "rb") as answers:
                yield Browser(commands, answers)
        finally:
            process.kill()
            process.wait()

    def go(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def value(self, script: str) -> Any:
        """What a JavaScript expression gives, as plain values; None while a page is loading."""
        result = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return result.get("result", {}).get("value")

    def wait_for(self, script: str, limit_sec: float = 60.0) -> Any:
        """The value of `script` once it is true."""
        deadline = time.monotonic() + limit_sec
        while not (value := self.value(script)):
            assert time.monotonic() < deadline, f"not within {limit_sec} s: {script}"
            time.sleep(0.2)
        return value

    def click(self, selector: str) -> None:
        """Press the mouse on the first element that `selector` names, scrolled to where it can be seen."""
        self.value(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})")
        box = self.value(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, text: str) -> None:
        """Into what has the focus."""
        self._call("Input.insertText", text=text)

    def emulate(self, *, width: int, height: int, dark: bool) -> None:
        """Another size of the window, and a person who prefers dark or light pages."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._number:
                return answer.get("result", {})
            self._note(answer.get("method", ""), answer.get("params", {}))

    def _note(self, event: str, values: dict[str, Any]) -> None:
        """Keep what the page complains of."""
        if event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(values["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.complaints.append(json.dumps(values["args"]))
        elif event == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.complaints.append(json.dumps(values["entry"]))

    def _read(self) -> bytes:
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            text += byte
        return bytes(text)
