"""A real headless Chromium, driven over the WebDriver protocol. Needs the Debian packages chromium and chromium-driver.

The protocol is JSON over HTTP to chromedriver, so httpx is enough: https://www.w3.org/TR/webdriver2/.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
HERE = CHROMIUM.exists() and DRIVER.exists()
PATIENCE_S = 30.0
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--hide-scrollbars",
)  # fmt: skip
_PORT = re.compile(r"started successfully on port (\d+)")


class Browser:
    """One window."""

    def __init__(self, http: httpx.Client, session: str) -> None:
        self._http, self._session = http, session

    def _ask(self, method: str, what: str, body: dict[str, Any] | None = None) -> Any:
        answer = self._http.request(method, f"/session/{self._session}/{what}", json=body)
        value = answer.json()["value"]
        if answer.status_code != 200:
            raise AssertionError(f"{what}: {value['error']}: {value['message']}")
        return value

    def go(self, url: str) -> None:
        self._ask("POST", "url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run the body of a function in the page, and return what it returns."""
        return self._ask("POST", "execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, script: str, *arguments: Any) -> Any:
        """Run a script again and again until what it returns is true, and return that."""
        end = time.monotonic() + PATIENCE_S
        while not (found := self.run(script, *arguments)):
            if time.monotonic() > end:
                raise AssertionError(f"not so after {PATIENCE_S:.0f} s: {script}\n{self.text()}")
            time.sleep(0.05)
        return found

    def text(self, where: str = "body") -> str:
        """What a part shows; nothing if it is hidden."""
        script = (
            "const part = document.querySelector(arguments[0]); return part?.checkVisibility() ? part.innerText : ''"
        )
        return str(self.run(script, where))

    def said(self) -> list[str]:
        """What the page has written to its console since the last call, warnings and errors alone."""
        return [
            str(entry["message"])
            for entry in self._ask("POST", "se/log", {"type": "browser"})
            if entry["level"] in ("WARNING", "SEVERE")
        ]

    def requests(self) -> list[str]:
        """What the page has asked of any host since the last call, as URLs."""
        entries = [json.loads(entry["message"]) for entry in self._ask("POST", "se/log", {"type": "performance"})]
        sent = [each["message"] for each in entries if each["message"]["method"] == "Network.requestWillBeSent"]
        urls = [str(each["params"]["request"]["url"]) for each in sent]
        # the browser's own first window comes from chrome://
        return [url for url in urls if url.partition(":")[0] in ("http", "https", "ws", "wss")]

    def dress(self, *, dark: bool, calm: bool = False) -> None:
        """Say what the user likes."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self._tell("Emulation.setEmulatedMedia", features=features)

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Say how large the window is."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self._tell("Emulation.setDeviceMetricsOverride", **metrics)

    def picture(self) -> bytes:
        """Return what the window shows, as PNG."""
        return base64.b64decode(self._ask("GET", "screenshot"))

    def _tell(self, command: str, **parameters: Any) -> Any:
        return self._ask("POST", "goog/cdp/execute", {"cmd": command, "params": parameters})


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a browser with an empty profile; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        driver = subprocess.Popen(
            [str(DRIVER), "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            assert driver.stdout is not None
            found = next((match for line in driver.stdout if (match := _PORT.search(line))), None)
            assert found, "chromedriver did not start"
            with httpx.Client(base_url=f"http://127.0.0.1:{found[1]}", timeout=60, trust_env=False) as http:
                options = {"binary": str(CHROMIUM), "args": [*ARGUMENTS, f"--user-data-dir={profile}"]}
                wanted = {
                    "browserName": "chrome",
                    "goog:chromeOptions": options,
                    "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
                }
                answer = http.post("/session", json={"capabilities": {"alwaysMatch": wanted}}).json()["value"]
                assert "sessionId" in answer, answer
                try:
                    yield Browser(http, answer["sessionId"])
                finally:
                    http.delete(f"/session/{answer['sessionId']}")
        finally:
            driver.terminate()
            driver.wait(10)
            assert driver.stdout is not None
            driver.stdout.close()
