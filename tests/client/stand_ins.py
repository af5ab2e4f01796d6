"""What the client talks to, on this machine: the WebUI's API, and the parts of AWS's API that it uses."""

from __future__ import annotations

import base64
import email
import email.policy
import gzip
import io
import json
import re
import ssl
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

PASSWORD = "correct horse"
PATIENCE_SECONDS = 60.0  # against hanging only
COOKIE = "c00k1e"
TOKEN = "t0ken"
CSV = b"#,,,generated_by='OpenQuake engine'\nlon,lat,poe\n0,0,0.5\n"


@dataclass
class Calculation:
    """A calculation of the stand-in; its log comes a line at each question."""

    id: int
    files: list[str]
    fields: dict[str, str]
    description: str = "a job"
    owner: str = "ann"
    status: str = "executing"
    ends: str = "complete"
    log: list[list[str]] = field(default_factory=list)
    coming: list[list[str]] = field(default_factory=list)


def uploaded(token: str) -> list[str]:
    """The line of a log by which a calculation is known as an upload's (engine/oq_webui)."""
    return ["2026-11-26T09:59:59.00", "INFO", "main", f"Uploaded as {token}"]


DATASTORE = b"\x89HDF\r\n\x1a\n"


@dataclass
class FakeWebUI:
    """openquake.server, as far as the client uses it (its answers as engine 3.26.2 gives them).

    `faults` are called with a method and a path before a request is answered; one that returns True breaks the
    connection. `after` likewise when it was done.
    """

    login: bool = True
    password: str = PASSWORD
    cookie: str = COOKIE
    suffix: str = "_prod"  # of the names of its cookies
    names_uploads: bool = True  # in the log of their calculations
    calculations: dict[int, Calculation] = field(default_factory=dict)
    faults: list[Callable[[str, str], bool]] = field(default_factory=list)
    after: list[Callable[[str, str], bool]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    refusal: str = ""
    broken_outputs: dict[int, int] = field(
        default_factory=dict
    )  # by number, the status that one is answered with
    ends: str = "complete"
    endless: bool = False
    stalls: int = 0  # so many datastores come in part, and then nothing until
    goes_on: threading.Event = field(
        default_factory=threading.Event
    )  # this is set; whether it was seen in time:
    gone_on: list[bool] = field(default_factory=list)
    lines: list[list[str]] = field(
        default_factory=lambda: [
            ["2026-11-26T10:00:00.00", "INFO", "main", f"classical {percent:3d}% [8 submitted, 0 queued]"]
            for percent in (25, 50, 100)
        ]
    )

    def answer(
        self, method: str, path: str, query: Mapping[str, list[str]], headers: Any, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of one answer."""
        if path == "/accounts/ajax_login/":
            if not self.login:
                return 404, b"", {}
            form = parse_qs(body.decode())
            if form["password"] != [self.password]:
                return 403, b"Invalid login", {}
            return (
                200,
                b"Successful login",
                {"Set-Cookie": f"sessionid{self.suffix}={self.cookie}; HttpOnly; Path=/"},
            )
        if self.login and f"sessionid{self.suffix}={self.cookie}" not in headers.get("Cookie", ""):
            return (302 if path.startswith("/accounts/") else 403), b"", {}
        if path == "/accounts/password/":
            return self._password(method, headers, body)
        if path == "/v1/engine_version":
            return 200, b"3.26.2", {}
        if path == "/v1/calc/list":
            limit = int(query.get("limit", ["100"])[0])
            found_all = [self._status(found) for found in reversed(self.calculations.values())]
            return self._json(found_all if limit < 0 else found_all[:limit])
        if path == "/v1/calc/run":
            return self._run(headers, body)
        if found := re.fullmatch(r"/v1/calc/result/(\d+)", path):
            if int(found[1]) in self.broken_outputs:
                return self.broken_outputs[int(found[1])], b"an exporter's error", {}
            return self._result(int(found[1]), query["export_type"][0])
        found = re.fullmatch(r"/v1/calc/(\d+)/(\w+)(?:/(\d*):)?", path)
        if not found or int(found[1]) not in self.calculations:
            return 404, b"", {}
        return self._about(self.calculations[int(found[1])], found[2], int(found[3] or 0))

    def _password(self, method: str, headers: Any, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if not self.login:
            return 404, b"", {}
        if method == "GET":
            return 200, b"a form", {"Set-Cookie": f"csrftoken{self.suffix}={TOKEN}; Path=/"}
        if headers["X-CSRFToken"] != TOKEN or f"csrftoken{self.suffix}={TOKEN}" not in headers["Cookie"]:
            return 403, b"CSRF verification failed", {}
        form = parse_qs(body.decode())
        if form["old_password"] != [self.password]:
            return 400, json.dumps({"errors": ["Your old password was entered incorrectly."]}).encode(), {}
        assert form["new_password1"] == form["new_password2"]
        (self.password,) = form["new_password1"]
        self.cookie += "2"
        return (
            200,
            b'{"changed": true}',
            {"Set-Cookie": f"sessionid{self.suffix}={self.cookie}; HttpOnly; Path=/"},
        )

    def _about(self, one: Calculation, what: str, start: int) -> tuple[int, bytes, dict[str, str]]:
        if what == "status":
            if not one.coming and not self.endless and one.status == "executing":
                one.status = one.ends
            return self._json(self._status(one))
        if what == "log":
            if one.coming:
                one.log.append(one.coming.pop(0))
            return self._json(one.log[start:])
        if what == "results":
            curves = {"id": 11, "name": "Hazard Curves", "type": "hcurves", "outtypes": ["csv", "xml"]}
            report = {"id": 12, "name": "Full Report", "type": "fullreport", "outtypes": ["rst"]}
            return self._json([curves, report]) if one.status == "complete" else (404, b"", {})
        if what == "abort":
            if one.status != "executing":
                return self._json({"error": f"Job {one.id} is not running"})
            one.status = "aborted"
            return self._json({"success": f"Killing job {one.id}"})
        if what == "datastore":
            return 200, DATASTORE, {}
        if what == "remove":
            del self.calculations[one.id]
            return self._json({"success": str(one.id)})  # as the engine says it
        return self._json({"success": f"{what} {one.id}"})

    def _result(self, number: int, kind: str) -> tuple[int, bytes, dict[str, str]]:
        if number == 12:
            return 200, b"report", {"Content-Disposition": "attachment; filename=output-12-report_1.rst"}
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("hazard_curve-mean-PGA_1.csv", CSV)
            archive.writestr("quantile_curve-0.5-PGA_1.csv", CSV)
        named = f"attachment; filename=output-11-hcurves-{kind}.zip"
        return 200, packed.getvalue(), {"Content-Disposition": named}

    def _run(self, headers: Any, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if self.refusal:
            return 500, json.dumps({"traceback": ["Traceback …", self.refusal], "job_id": 7}).encode(), {}
        text = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode() + body
        message = email.message_from_bytes(text, policy=email.policy.HTTP)
        parts: dict[str, bytes] = {}
        for part in message.iter_parts():
            name = str(part.get_param("name", header="Content-Disposition"))
            parts[name] = bytes(part.get_payload(decode=True))
        with zipfile.ZipFile(io.BytesIO(parts.pop("archive"))) as archive:
            files = archive.namelist()
            (ini,) = [name for name in files if name.endswith(parts["job_ini"].decode().strip())]
            described = re.search(r"description *= *(.*)", archive.read(ini).decode())
        fields = {name: value.decode().strip() for name, value in parts.items()}
        token = fields.pop("upload", "")
        number = max(self.calculations, default=0) + 1
        self.calculations[number] = Calculation(
            number, files, fields, described[1] if described else "", ends=self.ends, coming=list(self.lines)
        )
        if self.names_uploads:
            self.calculations[number].log.append(uploaded(token))
        return self._json({"job_id": number})

    @staticmethod
    def _status(one: Calculation) -> dict[str, Any]:
        return {
            "id": one.id, "owner": one.owner, "status": one.status, "description": one.description,
            "calculation_mode": "classical", "start_time": "2026-11-26, 10:00:00 UTC",
            "parent_id": int(one.fields["hazard_job_id"]) if "hazard_job_id" in one.fields else None,
        }  # fmt: skip

    @staticmethod
    def _json(value: Any) -> tuple[int, bytes, dict[str, str]]:
        return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def packed(output: str) -> str:
    """An output as `gzip -9 | base64 -w0` writes it."""
    return base64.b64encode(gzip.compress(output.encode())).decode()


def kept(output: str) -> str:
    """What amazon-ssm-agent keeps of a command's output (StringPrefix in agent/plugins/pluginutil): bytes count."""
    mark = b"--output truncated--"
    found = output.encode()
    return (found if len(found) < 24_000 else found[: 24_000 - len(mark)] + mark).decode(errors="replace")


@dataclass
class FakeAws:
    """AWS's API: SSM in its JSON protocol, EC2 in its own; of EC2 Auto Scaling nobody may see anything.

    `answers` is what commands on the master give, by a part of their line; `state` what the master is, and `coming`
    what it is at the next requests, the last one from then on.
    """

    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, tuple[int, str]] = field(default_factory=dict)
    error: str = ""
    ec2_error: str = ""
    state: str = "running"
    coming: list[str] = field(default_factory=list)
    starts: tuple[str, ...] = ("pending", "running")

    def answer(
        self, method: str, path: str, query: Mapping[str, list[str]], headers: Any, body: bytes
    ) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of one answer."""
        del method, path, query
        if "X-Amz-Target" not in headers:
            return self._ec2({name: values[0] for name, values in parse_qs(body.decode()).items()})
        operation = headers["X-Amz-Target"].partition(".")[2]
        request = json.loads(body)
        self.asked.append((operation, request))
        kind = {"Content-Type": "application/x-amz-json-1.1"}
        error = self.error
        self._go_on()
        if self.state != "running" and operation in ("StartSession", "SendCommand"):
            error = "TargetNotConnected" if operation == "StartSession" else "InvalidInstanceId"
        if error:
            return 400, json.dumps({"__type": error, "message": "it says so"}).encode(), kind
        answer: dict[str, Any] = {}
        if operation == "StartSession":
            answer = {"SessionId": "ann-1", "TokenValue": "the-token", "StreamUrl": "wss://example"}
        elif operation == "SendCommand":
            answer = {"Command": {"CommandId": "00000000-0000-0000-0000-000000000001"}}
        elif operation == "GetCommandInvocation":
            (line,) = self.requests("SendCommand")[-1]["Parameters"]["commands"]
            status, text = next((found for part, found in self.answers.items() if part in line), (0, ""))
            output = "" if status else text
            if found := re.search(r"gzip .* head -c (\d+)", line):
                output = packed(output)[: int(found[1])]
            answer = {
                "Status": "Failed" if status else "Success", "ResponseCode": status,
                "StandardOutputContent": kept(output),
                "StandardErrorContent": f"{text}\nfailed to run commands: exit status {status}" if status else "",
            }  # fmt: skip
            if "oq-node sleep" in line and not status:
                self.coming = ["running", "stopping", "stopped"]
        return 200, json.dumps(answer).encode(), kind

    def _ec2(self, request: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
        operation = request["Action"]
        self.asked.append((operation, request))
        kind = {"Content-Type": "text/xml"}
        if operation not in ("DescribeInstances", "StartInstances"):  # EC2 Auto Scaling's
            text = (
                "<ErrorResponse><Error><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
            )
            return 403, text.encode(), kind
        if error := self.ec2_error or self.error:
            text = f"<Response><Errors><Error><Code>{error}</Code><Message>no</Message></Error></Errors></Response>"
            return 400, text.encode(), kind
        if operation == "StartInstances":
            self.coming = list(self.starts)
        else:
            self._go_on()
        reason = "<stateReason><message>Client error on launch</message></stateReason>"
        instance = f"<item><instanceState><name>{self.state}</name></instanceState>{reason}</item>"
        found = f"<reservationSet><item><instancesSet>{instance}</instancesSet></item></reservationSet>"
        return 200, f"<{operation}Response>{found}</{operation}Response>".encode(), kind

    def _go_on(self) -> None:
        if self.coming:
            self.state = self.coming.pop(0)

    def requests(self, operation: str) -> list[dict[str, Any]]:
        """What was asked of an operation."""
        return [request for name, request in self.asked if name == operation]


@contextmanager
def served(stand_in: FakeWebUI | FakeAws, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """Serve it on a port of the loopback."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Nothing."""

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except OSError:  # a client that has gone, or was cut off
                self.close_connection = True

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            faults = getattr(stand_in, "faults", [])
            if any(fault(self.command, parts.path) for fault in faults):
                return self._break()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if isinstance(stand_in, FakeWebUI):
                stand_in.asked.append(f"{self.command} {parts.path}")
            status, answer, headers = stand_in.answer(
                self.command, parts.path, parse_qs(parts.query), self.headers, body
            )
            if any(fault(self.command, parts.path) for fault in getattr(stand_in, "after", [])):
                return self._break()
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(answer))}).items():
                self.send_header(name, value)
            self.end_headers()
            if isinstance(stand_in, FakeWebUI) and stand_in.stalls and parts.path.endswith("/datastore"):
                stand_in.stalls -= 1
                self.wfile.write(answer[:4])
                stand_in.gone_on.append(stand_in.goes_on.wait(PATIENCE_SECONDS))
                return self._break()
            self.wfile.write(answer)
            return None

        do_POST = do_GET

        def _break(self) -> None:
            self.close_connection = True
            self.connection.close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
