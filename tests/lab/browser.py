"""Chromium without a window on a client's computer of the lab, driven by the WebDriver protocol.

https://www.w3.org/TR/webdriver2/ : a command is a request of HTTP with JSON, which chromedriver answers.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from components import facts
from lab.cluster.cluster import Lab
from lab.linux.host import in_netns, wait_until
from lab.linux.network import enter

PROGRAMS = ("chromium", "chromedriver")
PICTURES = "OQLAB_PICTURES"
"""Names the directory that pictures of the pages are written to; without it there are none."""
WINDOW = (1100, 760)
PATIENCE_SECONDS = 60.0
_PORT = 9515  # chromedriver's own; the client's namespace has its ports to itself
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how the protocol marks a reference to an element
# What the page may still change: it draws its tables anew every three seconds, and dialogs fade.
_PASSING = (
    "no such element",
    "stale element reference",
    "element not interactable",
    "element click intercepted",
)


class PageError(AssertionError):
    """The browser cannot do on the page what it is told."""


class Browser:
    """A browser with the WebUI in it. Elements are named by CSS, or by XPath, which begins with a slash."""

    def __init__(self, lab: Lab, downloads: Path) -> None:
        self.url = f"http://{lab.master().address}:{facts.WEBUI_PORT}"
        self.downloads = downloads
        self._session = ""
        # A thread of its own is in the client's namespace, and the test is not.
        namespace = Path("/run/netns", lab.paths.netns("client"))
        self._thread = ThreadPoolExecutor(1, initializer=enter, initargs=(namespace,))

    def start(self) -> None:
        """Open a window, once chromedriver answers."""
        options = {
            "args": [
                "--headless=new",
                "--no-sandbox",  # Chromium's refuses to be root's, and the only pages are the lab's own
                "--disable-background-networking",
                # What comes by plain HTTP is kept back until somebody clicks on "Keep", in a menu that belongs to no
                # page; not so through a port forward, whose localhost counts as secure.
                f"--unsafely-treat-insecure-origin-as-secure={self.url}",
                f"--window-size={WINDOW[0]},{WINDOW[1]}",
            ],
            "prefs": {"download.default_directory": str(self.downloads)},
        }
        wait_until("chromedriver", self._answers, 120)
        started = self._command("POST", "", capabilities={"alwaysMatch": {"goog:chromeOptions": options}})
        self._session = f"/{started['sessionId']}"

    def end(self) -> None:
        """Close the window."""
        if self._session:
            self._command("DELETE", "")

    def open(self, path: str) -> None:
        """Go to an address of the WebUI."""
        self._command("POST", "/url", url=self.url + path)

    def path(self) -> str:
        """The address at which the window is."""
        return str(self._command("GET", "/url")).removeprefix(self.url)

    def click(self, element: str) -> None:
        """Click, as soon as the element is there to be clicked."""
        self._on(element, "POST", "/click")

    def write(self, element: str, text: str) -> None:
        """Type text into a field; into one for files the path of a file."""
        self._on(element, "POST", "/value", text=text)

    def text(self, element: str) -> str:
        """What people see of an element, as soon as it is there."""
        return str(self._on(element, "GET", "/text"))

    def rows(self, table: str) -> list[list[str]]:
        """What the cells of a table contain, row by row."""
        script = (
            "return [...document.querySelectorAll(arguments[0] + ' > tbody > tr')].map("
            "row => [...row.children].map(cell => cell.innerText.trim()))"
        )
        found: list[list[str]] = self._command("POST", "/execute/sync", script=script, args=[table])
        return found

    def downloaded(self, element: str) -> Path:
        """The file that a click on a link downloads."""
        before = set(self.downloads.iterdir())
        self.click(element)

        def complete() -> list[Path]:
            new = set(self.downloads.iterdir()) - before
            # Chromium writes beside the name, and renames what is complete.
            return (
                [] if any(file.suffix == ".crdownload" or file.name[0] == "." for file in new) else list(new)
            )

        wait_until("the download", complete, PATIENCE_SECONDS)
        (file,) = complete()
        return file

    def picture(self, name: str) -> None:
        """Write what the window shows, if pictures are asked for."""
        if directory := os.environ.get(PICTURES):
            png = base64.b64decode(self._command("GET", "/screenshot"))
            Path(directory, f"{name}.png").write_bytes(png)

    def _on(self, element: str, method: str, command: str, **values: Any) -> Any:
        """Do something to an element, again while the page is not ready for it."""
        using = "xpath" if element.startswith("/") else "css selector"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                reference = self._command("POST", "/element", using=using, value=element)[_ELEMENT]
                return self._command(method, f"/element/{reference}{command}", **values)
            except PageError as error:
                if error.args[0] not in _PASSING or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return bool(self._ask("GET", "/status").json()["value"]["ready"])
        except requests.ConnectionError:
            return False

    def _command(self, method: str, path: str, **values: Any) -> Any:
        answer = self._ask(method, f"/session{self._session}{path}", json=values)
        value = answer.json()["value"]
        if answer.status_code != 200:
            raise PageError(value["error"], value["message"])
        return value

    def _ask(self, method: str, path: str, **options: Any) -> requests.Response:
        url = f"http://127.0.0.1:{_PORT}{path}"
        return self._thread.submit(requests.request, method, url, timeout=60, **options).result()


def missing() -> list[str]:
    """The programs of a browser that this machine lacks."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def browser(lab: Lab, directory: Path) -> Iterator[Browser]:
    """A browser on the client's computer, while the block lasts; its home and its downloads are in a directory."""
    downloads = directory / "downloads"
    downloads.mkdir()
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "TMPDIR": str(directory)}
    command = in_netns(lab.paths.netns("client"), ["chromedriver", f"--port={_PORT}"])
    with (directory / "chromedriver.log").open("wb") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    found = Browser(lab, downloads)
    try:
        found.start()
        yield found
    finally:
        try:
            found.end()
        finally:
            driver.terminate()
            driver.wait()
