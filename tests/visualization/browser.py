"""A headless Chromium for tests, driven through chromedriver's WebDriver interface with the standard library alone."""

import json
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-default-apps --disable-dev-shm-usage""".split()
KEYS = {"left": "\ue012", "right": "\ue014", "end": "\ue010", "home": "\ue011", "space": " "}
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing() -> str:
    """Why there is no browser to test with; "" if there is one."""
    if not (shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")):
        return "no Chromium here; install the package chromium"
    if not shutil.which("chromedriver"):
        return "no chromedriver here; install the package chromium-driver"
    return ""


class Browser:
    """A session; ``with Browser() as browser``."""

    def __enter__(self) -> "Browser":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._profile = tempfile.mkdtemp()
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={self._url.rsplit(':', 1)[1]}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            self._wait()
            binary = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
            options = {"binary": binary, "args": [*FLAGS, f"--user-data-dir={self._profile}"]}
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._url += f"/session/{session['sessionId']}"
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("DELETE", "")
        finally:
            self._stop()

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Open a file at a size of the window, with the logs emptied."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **size)
        self.console(), self.requests()
        self._call("POST", "/url", {"url": Path(path).resolve().as_uri()})

    def run(self, script: str, *arguments: object) -> object:
        """What a script ``return``s."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, key: str, selector: str = "body") -> None:
        """Send a key, by its name in KEYS, to an element."""
        self._call("POST", f"/element/{self._find(selector)}/value", {"text": KEYS[key]})

    def click(self, selector: str) -> None:
        self._call("POST", f"/element/{self._find(selector)}/click", {})

    def click_at(self, selector: str, across: float) -> None:
        """Click on an element, at this share of its width and half its height."""
        x, y = self.run(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect(); return [r.left + arguments[1] * r.width, r.top + r.height / 2];",
            selector,
            across,
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.devtools("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def console(self) -> list[str]:
        """What the console has got since the last call."""
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Addresses asked for since the last call, ``data:`` left out."""
        found = []
        for entry in self._call("POST", "/se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [url for url in found if not url.startswith("data:")]

    def devtools(self, command: str, **parameters: object) -> dict:
        """A command of the DevTools protocol."""
        return self._call("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _find(self, selector: str) -> str:
        return self._call("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _call(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {json.load(error)['value']['message']}") from error

    def _wait(self) -> None:
        end = time.monotonic() + 60
        while True:
            try:
                if self._call("GET", "/status")["ready"]:
                    return
            except OSError:
                if time.monotonic() > end or self._driver.poll() is not None:
                    raise
            time.sleep(0.1)

    def _stop(self) -> None:
        self._driver.terminate()
        self._driver.wait()
        shutil.rmtree(self._profile, ignore_errors=True)
