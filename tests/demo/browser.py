"""A page opened in headless Chromium, and what came of it; spoken to over a pipe with the DevTools protocol."""

import base64
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: The structure is drawn by the CPU, and nothing of the caller's desktop is used.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
)

PATIENCE_S = 60

#: Resolves with the title once the page's script has said how drawing went.
WHEN_DRAWN = """new Promise((tell) => {
  const look = () => /^(not )?rendered: /.test(document.title) && tell(document.title);
  new MutationObserver(look).observe(document, { subtree: true, childList: true, characterData: true });
  look();
})"""


@dataclass
class Page:
    """An open page: what it asked for, what it complained about, and a way to look at it and to work it."""

    devtools: "DevTools"

    def title(self) -> str:
        """The title, once the structure was drawn or could not be."""
        return str(self.run(WHEN_DRAWN))

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page; promises are waited for."""
        answer = self.devtools.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self) -> bytes:
        """What there is to see, as PNG."""
        return base64.b64decode(self.devtools.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    @property
    def requests(self) -> list[str]:
        """Every URL that the page asked for, its own included."""
        return [each["request"]["url"] for each in self.devtools.seen("Network.requestWillBeSent")]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings on the console, and exceptions that nothing caught."""
        logged = [each["entry"]["text"] for each in self.devtools.seen("Log.entryAdded")]
        called = [json.dumps(each["args"]) for each in self.devtools.seen("Runtime.consoleAPICalled")]
        thrown = [json.dumps(each["exceptionDetails"]) for each in self.devtools.seen("Runtime.exceptionThrown")]
        return [*logged, *called, *thrown]


class DevTools:
    """Sends commands to the browser and collects its events; one line of talk, in order."""

    def __init__(self, reading: int, writing: int) -> None:
        self.session = ""
        self._reading, self._writing = reading, writing
        self._buffer = b""
        self._count = 0
        self._events: list[dict[str, Any]] = []

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The browser's answer to a command."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            self._events.append(answer)

    def seen(self, method: str) -> list[dict[str, Any]]:
        """The parameters of the events of this name so far."""
        return [event["params"] for event in self._events if event.get("method") == method]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser did not answer within {PATIENCE_S} s"
            data = os.read(self._reading, 2**20)
            assert data, "the browser ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        return message


@contextmanager
def opened(chromium: Path, page: Path, profile: Path, width: int = 1280, height: int = 900) -> Iterator[Page]:
    """`page` in a browser with a fresh profile and a screen of this size, which is closed at the end."""
    their_end, writing = os.pipe()
    reading, their_other_end = os.pipe()
    # The protocol lives on descriptors 3 and 4. Not `sh`: dash knows descriptors of one digit only.
    shell = ["bash", "-c", f'exec "$@" 3<&{their_end} 4>&{their_other_end}', "bash"]
    process = subprocess.Popen(
        [*shell, str(chromium), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(their_end, their_other_end),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(their_end)
    os.close(their_other_end)
    try:
        yield _load(DevTools(reading, writing), page, width, height)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reading)
        os.close(writing)


def _load(devtools: DevTools, page: Path, width: int, height: int) -> Page:
    target = next(
        each["targetId"] for each in devtools.call("Target.getTargets")["targetInfos"] if each["type"] == "page"
    )
    devtools.session = devtools.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    for domain in ("Network", "Log", "Runtime", "Page"):
        devtools.call(f"{domain}.enable")
    # A window is never narrower than 500; a screen may be.
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    devtools.call("Emulation.setDeviceMetricsOverride", **screen)
    devtools.call("Page.navigate", url=page.resolve().as_uri())
    return Page(devtools)
