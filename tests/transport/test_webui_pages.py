"""What the WebUI's pages make of texts that somebody else has written: upstream's templates and scripts in a browser.

The pages are those of Django's own client, the API's answers are made up; the lab has the whole WebUI in a browser.
"""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.transport import processes
from tests.transport.test_webui_owners import office
from tests.unit.test_webui import UPSTREAMS_HANDLERS

(SERVER,) = processes.ENGINE.glob("lib/python3*/site-packages/openquake/server") or [Path("/nowhere")]
# Runs wherever it becomes HTML, or where a quote of it ends an attribute's value.
TEXT = """"onfocus="fetch('/run')" autofocus <img src=x onerror="fetch('/run')"> & 'Café'"""
# Presses what there is on the list of calculations, and sends what each dialog then says.
VISITOR = """<script>
addEventListener("load", async () => {
  const until = async (there) => {
    for (let n = 0; n < 3000; n++) {
      const found = there();
      if (found) return found;
      await new Promise((later) => setTimeout(later, 100));
    }
  };
  const one = (css) => document.querySelector(css);
  const says = async (css, words) => (await until(() => one(css)?.innerText.includes(words) && one(css)))?.innerText;
  const press = async (css) => (await until(() => one(css))).click();
  const dialog = "#errorDialog .modal-body", said = {};
  const send = () => fetch("/said", {method: "POST", body: JSON.stringify(said)});
  addEventListener("unhandledrejection", (event) => { said.error = String(event.reason); send(); });
  said.row = [...(await until(() => one("#calculation_table tbody tr"))).children].map((cell) => cell.innerText);
  await press(".btn-share");
  said.question = await says("#confirmModal .modal-body", "Are you sure");
  await press("#confirmModal .btn-confirm");
  said.answer = await says(dialog, "shared");
  await press(".btn-traceback");
  said.traceback = await says(dialog, "module");
  await press(".btn-log");
  said.log = await says(dialog, "INFO");
  said.tags = await until(() => one("#tag_selector").options.length > 1
    && [...one("#tag_selector").options].map((tag) => [tag.value, tag.innerText]));
  said.images = document.querySelectorAll("img[src=x]").length;
  await send();
});
</script>"""


def calculation(number: int, status: str, **more: Any) -> dict[str, Any]:
    named = dict.fromkeys(("owner", "calculation_mode", "description", "tags", "start_time"), TEXT)
    return {
        "id": number,
        "status": status,
        "is_running": False,
        "relevant": 1,
        "abortable": False,
        **named,
        **more,
    }


ANSWERS: dict[str, Any] = {
    "/v1/calc/list": [calculation(1, "complete"), calculation(2, "failed")],
    "/v1/calc/list_tags": {"success": "yes", "tags": [TEXT]},
    "/v1/calc/1/share": {"success": "yes"},
    "/v1/calc/2/traceback": ["in <module>", TEXT],
    "/v1/calc/1/log/0:": [["2026-11-28", "INFO", "x", TEXT]],
    "/v1/calc/1/result/list": [{"id": 1, "name": TEXT, "type": TEXT, "outtypes": [TEXT], "size_mb": 1}],
}


class Site(http.server.BaseHTTPRequestHandler):
    """A page, what it loads, and answers of the API; `asked` are the paths, `said` is what a visitor sends."""

    page = ""
    asked: list[str]
    said: dict[str, Any]
    done: threading.Event

    def do_GET(self) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        file = SERVER / path.removeprefix("/")
        if path in ANSWERS:
            self._answer(json.dumps(ANSWERS[path]).encode(), "application/json")
        elif path == "/page":
            self._answer(self.page.encode(), "text/html; charset=utf-8")
        elif path.startswith("/static/") and file.is_file():
            kind = {".js": "text/javascript", ".css": "text/css"}.get(file.suffix, "application/octet-stream")
            self._answer(file.read_bytes(), kind)
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/said":
            self.said.update(json.loads(body))
            self.done.set()
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def browser(url: str, home: Path) -> Iterator[None]:
    """Chromium without a window at an address, while the block lasts."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("missing here: chromium (make transport installs it)")
    # Its own sandbox refuses to be root's, and the only page is the tests' own.
    options = ["--headless=new", "--no-sandbox", "--disable-background-networking", f"--user-data-dir={home}"]
    with (home / "log").open("wb") as log:
        running = subprocess.Popen(
            [program, *options, "--remote-debugging-port=0", url],
            stdout=log,
            stderr=log,
            env={"HOME": str(home)},
        )
    try:
        yield
    finally:
        running.terminate()
        running.wait()


def visited(page: str, home: Path) -> tuple[dict[str, Any], list[str]]:
    """What a visitor has seen on a page, and the paths that the browser has asked for."""
    site = type("Visited", (Site,), {"page": page, "asked": [], "said": {}, "done": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home.mkdir()
        with browser(f"http://127.0.0.1:{server.server_port}/page", home):
            assert site.done.wait(processes.DEADLINE), (site.asked, site.said, (home / "log").read_text())  # type: ignore[attr-defined]
        server.shutdown()
    return site.said, site.asked  # type: ignore[attr-defined]


def page(directory: Path, path: str) -> str:
    """A page of the WebUI as Ann gets it."""
    (html,) = office(
        directory,
        "client = Client(SERVER_NAME='localhost')",
        "client.force_login(get_user_model().objects.get(username='ann'))",
        f"print(json.dumps(client.get({path!r}).content.decode()))",
    )
    return str(html).replace("//localhost", "")  # by which the test's server is not reached


def test_what_a_calculation_says_of_itself_is_text_to_whoever_looks_at_it(tmp_path: Path) -> None:
    """In the list, in the dialogs and among the tags; a browser would run it in the name of who looks."""
    said, asked = visited(page(tmp_path, "/engine/") + VISITOR, tmp_path / "browser")
    assert "/run" not in asked
    assert "error" not in said, said
    assert said["images"] == 0
    assert said["row"][1:6] == [TEXT] * 5
    assert said["question"].strip() == f'Are you sure you want to share calculation 1?\n"{TEXT}"'
    assert said["answer"].strip() == f'Calculation 1 "{TEXT}" has been shared'
    assert "in <module>" in said["traceback"]
    assert TEXT in said["traceback"]
    assert TEXT in said["log"]
    assert said["tags"] == [["", "All tags"], [TEXT, TEXT]]


def test_upstream_has_no_template_that_wants_html_and_no_other_code_in_attributes() -> None:
    """What is text on our pages, and what their content security policy lets run."""
    pages = [path.read_text() for path in (SERVER / "templates/engine").glob("*.html")]
    scripts = [path.read_text() for path in (SERVER / "static/js").glob("*.js")]
    assert any("<%=" in page for page in pages)
    assert not any("<%-" in text for text in pages + scripts)  # which is ours to write `<%=` for
    code = {code for text in pages + scripts for _, code in re.findall(r" on[a-z]+=([\"'])(.+?)\1", text)}
    assert {one.encode() for one in code} == set(UPSTREAMS_HANDLERS)
