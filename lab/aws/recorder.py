"""Run the Pulumi program with no Pulumi engine and no AWS, and record all that it registers.

The recording is what the unit tests look at and what the lab makes real. It holds each resource's inputs as a
real engine would get them (camelCase keys, plain values), the options that Pulumi's own mocks drop, and
made-up outputs in AWS's forms: the same resource has the same id in every run.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import runpy
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pulumi.output import Unknown
from pulumi.runtime import mocks, rpc
from pulumi.runtime.config import set_all_config
from pulumi.runtime.proto import engine_pb2
from pulumi.runtime.settings import Settings
from pulumi.runtime.stack import run_in_stack

from components import facts
from lab.aws.answers import INVOKES, Invokes, Refused, answer
from lab.aws.recording import Recorded, Recording
from lab.aws.resources import TYPES, ResourceType, resource
from lab.base import REPOSITORY

PROGRAM: Final = REPOSITORY / "__main__.py"
# What stands in a recorded value of a preview for something that only exists after `pulumi up`.
UNKNOWN: Final[str] = rpc.UNKNOWN


def run_program(
    config: Mapping[str, str],
    *,
    preview: bool = False,
    invokes: Invokes | None = None,
    stashed: Mapping[str, Any] | None = None,
    stack: str = "test",
    program: Path = PROGRAM,
) -> Recording:
    """Run the program with this configuration and return what it registered.

    Keys without a namespace are the project's own; values are text, structured ones JSON, as Pulumi hands
    them over. `invokes` adds to or replaces the answers in INVOKES; `stashed` maps the name of a Stash to what
    it has kept since an earlier run. Whatever the program raises is raised here.

    Each run has its own thread and its own context variables, where Pulumi keeps all its state; so runs
    neither see nor disturb each other or the caller's event loop.
    """
    recording = Recording()
    monitor = _Monitor(recording, {**INVOKES, **(invokes or {})}, stashed or {}, preview)
    full = {key if ":" in key else f"{facts.PROJECT}:{key}": value for key, value in config.items()}
    failure: list[BaseException] = []

    def execute() -> None:
        runpy.run_path(str(program), run_name="__main__")

    async def run() -> None:
        # When the program fails, Pulumi leaves futures that hold the same error behind; it is raised below.
        asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
        set_all_config(full)
        # Not MockSettings: it would leave this run waiting for what the previous one did not finish.
        Settings(facts.PROJECT, stack, monitor, _Engine(recording), dry_run=preview)
        await run_in_stack(execute)

    def guarded() -> None:
        try:
            contextvars.Context().run(asyncio.run, run())
        except BaseException as error:  # carried over to the caller's thread, whatever it is
            failure.append(error)

    # An Output that ends up in a text by mistake raises where it does, instead of putting a warning into the
    # text.
    os.environ["PULUMI_ERROR_OUTPUT_STRING"] = "1"
    thread = threading.Thread(target=guarded, name="pulumi-program")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    recording.resources.sort(key=lambda one: one.urn)  # Pulumi registers in an order of its own each time
    return recording


class _Monitor(mocks.MockMonitor):
    """Pulumi's mock of its resource monitor, which also keeps what the program asked for."""

    def __init__(
        self, recording: Recording, invokes: Invokes, stashed: Mapping[str, Any], preview: bool
    ) -> None:
        super().__init__(_Mocks(recording, invokes, stashed, preview))
        self._recording = recording
        self._lock = threading.Lock()

    def RegisterResource(self, request: Any) -> Any:
        response = super().RegisterResource(request)  # type: ignore[no-untyped-call]
        if request.type != "pulumi:pulumi:Stack":
            self._record(request, response.urn)
        return response

    def RegisterResourceOutputs(self, request: Any) -> Any:
        outputs = rpc.deserialize_properties(request.outputs, keep_unknowns=True)
        if request.urn.split("::")[2] == "pulumi:pulumi:Stack":
            self._recording.exports.update(_plain(outputs))
        else:
            self._recording.component_outputs[request.urn] = _plain(outputs)
        return super().RegisterResourceOutputs(request)  # type: ignore[no-untyped-call]

    def _record(self, request: Any, urn: str) -> None:
        registration = self.resources[urn]
        recorded = Recorded(
            type=request.type,
            name=request.name,
            urn=urn,
            id=registration.id,
            custom=request.custom,
            inputs=_plain(rpc.deserialize_properties(request.object, keep_unknowns=True)),
            outputs=_plain(registration.state),
            parent=request.parent,
            protect=request.protect,
            retain_on_delete=request.retainOnDelete,
            delete_before_replace=request.deleteBeforeReplace,
            ignore_changes=tuple(request.ignoreChanges),
            replace_on_changes=tuple(request.replaceOnChanges),
            timeouts={field.name: value for field, value in request.customTimeouts.ListFields()},
            dependencies=frozenset(request.dependencies),
            property_dependencies={
                key: frozenset(value.urns) for key, value in request.propertyDependencies.items()
            },
        )
        with self._lock:
            if any(one.urn == urn for one in self._recording.resources):
                raise ValueError(f"the program registers {urn} twice")
            self._recording.resources.append(recorded)


class _Engine(mocks.MockEngine):
    """Pulumi's mock of its engine, which also keeps the warnings."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(None)
        self._recording = recording

    def Log(self, request: Any) -> None:
        if request.severity >= engine_pb2.WARNING:
            self._recording.warnings.append(request.message)
        super().Log(request)  # type: ignore[no-untyped-call]


class _Mocks(mocks.Mocks):
    """Makes up the outputs of resources and answers invokes."""

    def __init__(
        self, recording: Recording, invokes: Invokes, stashed: Mapping[str, Any], preview: bool
    ) -> None:
        self._recording = recording
        self._invokes = invokes
        self._stashed = stashed
        self._preview = preview

    def new_resource(self, args: mocks.MockResourceArgs) -> tuple[str | None, dict[str, Any]]:
        if not args.custom:
            return "", {}
        kept: dict[str, Any] = {}
        if args.typ == "pulumi:index:Stash":  # Pulumi's own, so that a preview knows its output
            kept = {"output": self._stashed.get(args.name, args.inputs["input"])}
        if self._preview:  # AWS has made nothing yet: no id, and no output but the inputs
            return "", {**args.inputs, **kept}
        made = resource(args.typ, args.name, args.inputs)
        type_ = TYPES.get(args.typ, ResourceType())
        id_ = type_.id_of(made)
        return id_, {**type_.outputs(made, id_), **args.inputs, **kept}

    def call(self, args: mocks.MockCallArgs) -> tuple[dict[str, Any], list[tuple[str, str]]]:
        self._recording.invokes.append((args.token, dict(args.args)))
        try:
            return answer(self._invokes, args.token, args.args), []
        except Refused as reason:
            return {}, [("", str(reason))]


def _plain(value: Any) -> Any:
    """A deserialized value as plain data: no secret marks, UNKNOWN as text, and whole numbers as int.

    The wire knows them only as floats.
    """
    if rpc.is_rpc_secret(value):
        return _plain(rpc.unwrap_rpc_secret(value))
    if isinstance(value, Unknown):
        return UNKNOWN
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
