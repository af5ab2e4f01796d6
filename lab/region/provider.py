"""A provider for Pulumi's engine: the AWS resources of this program, as `lab.aws` knows them.

It keeps nothing: what has been made is in the engine's state. What a resource is on this machine, a subclass says by
overriding `make`, `change`, `remove` and `look`, and `unknown` for what this machine has not.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format, struct_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc

from lab.aws import answers, resources
from lab.aws.resources import TYPES

Values = dict[str, Any]


class Failure(Exception):
    """Raised by `make`, `change`, `remove` or `look`: AWS refuses, for this reason."""


class Provider(provider_pb2_grpc.ResourceProviderServicer):
    """Serves all packages that the program uses. Its log of what it was asked to do is `asked`.

    Attributes:
        asked: pairs of a verb (make, change, remove) and a resource's label, in order
    """

    def __init__(self) -> None:
        self.invokes: answers.Invokes = answers.INVOKES
        self.asked: list[tuple[str, str]] = []

    # --- what a resource is on this machine ---

    def unknown(self, type_: str, name: str, inputs: Values) -> Iterator[str]:
        """What of a resource is refused by name, a line for each."""
        return resources.unknown(type_, name, inputs)

    def make(self, type_: str, name: str, id_: str, outputs: Values) -> None:
        """Make a resource. Raises Failure where AWS would refuse."""

    def change(self, type_: str, name: str, id_: str, old: Values, new: Values) -> None:
        """Give a resource other properties. Raises Failure where AWS would refuse."""

    def remove(self, type_: str, name: str, id_: str, outputs: Values) -> None:
        """Delete a resource. Raises Failure where AWS would refuse."""

    def look(self, _type: str, _name: str, _id: str, outputs: Values) -> Values | None:
        """The properties that a resource has now; None if it is gone."""
        return outputs

    # --- what the engine asks ---

    def Handshake(self, _request: Any, _context: Any) -> Any:
        """Accept the engine."""
        return provider_pb2.ProviderHandshakeResponse()

    def Attach(self, _request: Any, _context: Any) -> Any:
        """Accept an engine that did not start this process."""
        return empty_pb2.Empty()

    def GetPluginInfo(self, _request: Any, _context: Any) -> Any:
        """A version that satisfies any that a program may ask for."""
        return plugin_pb2.PluginInfo(version="999.0.0")

    def CheckConfig(self, request: Any, _context: Any) -> Any:
        """Any configuration will do."""
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, _request: Any, _context: Any) -> Any:
        """No configuration forces new resources."""
        return provider_pb2.DiffResponse()

    def Configure(self, _request: Any, _context: Any) -> Any:
        """Say that previews may call Create and Update."""
        return provider_pb2.ConfigureResponse(supportsPreview=True, acceptResources=True)

    def Cancel(self, _request: Any, _context: Any) -> Any:
        """Nothing takes long."""
        return empty_pb2.Empty()

    def Check(self, request: Any, _context: Any) -> Any:
        """Refuse by name what is not known."""
        type_, name = _type_and_name(request.urn)
        problems = list(self.unknown(type_, name, _values(request.news)))
        failures = [provider_pb2.CheckFailure(reason=f"not known here: {problem}") for problem in problems]
        return provider_pb2.CheckResponse(inputs=request.news, failures=failures)

    def Diff(self, request: Any, _context: Any) -> Any:
        """What has changed of the inputs, and what of it forces a new resource."""
        type_, _ = _type_and_name(request.urn)
        old, new = _values(request.old_inputs), _values(request.news)
        changed = sorted(
            key
            for key in (old.keys() | new.keys()) - set(request.ignoreChanges)
            if old.get(key) != new.get(key)
        )
        return provider_pb2.DiffResponse(
            changes=provider_pb2.DiffResponse.DIFF_SOME if changed else provider_pb2.DiffResponse.DIFF_NONE,
            diffs=changed,
            replaces=[key for key in changed if key in TYPES[type_].forces(new)],
        )

    def Create(self, request: Any, context: Any) -> Any:
        """Make a resource; in a preview, only its inputs are known."""
        if request.preview:
            return provider_pb2.CreateResponse(properties=request.properties)
        type_, name = _type_and_name(request.urn)
        inputs = _values(request.properties)
        made = resources.resource(type_, name, inputs, salt=uuid.uuid4().hex)
        id_ = TYPES[type_].id_of(made)
        outputs = {**TYPES[type_].outputs(made, id_), **inputs}
        self.asked.append(("make", label(request.urn)))
        try:
            self.make(type_, name, id_, outputs)
        except Failure as reason:
            context.abort(grpc.StatusCode.UNKNOWN, str(reason))
        return provider_pb2.CreateResponse(id=id_, properties=_struct(outputs))

    def Update(self, request: Any, context: Any) -> Any:
        """Change a resource; in a preview, what the change counts up is not known."""
        type_, name = _type_and_name(request.urn)
        old, new = _values(request.olds), _values(request.news)
        counted = TYPES[type_].counts_up.split()
        if request.preview:
            kept = {key: value for key, value in old.items() if key not in counted}
            return provider_pb2.UpdateResponse(properties=_struct({**kept, **new}))
        # arguments that are no longer given are gone, outputs stay
        outputs = {key: value for key, value in old.items() if key not in TYPES[type_].arguments}
        outputs |= {key: old[key] + 1 for key in counted} | new
        self.asked.append(("change", label(request.urn)))
        try:
            self.change(type_, name, request.id, old, outputs)
        except Failure as reason:
            context.abort(grpc.StatusCode.UNKNOWN, str(reason))
        return provider_pb2.UpdateResponse(properties=_struct(outputs))

    def Delete(self, request: Any, context: Any) -> Any:
        """Delete a resource."""
        type_, name = _type_and_name(request.urn)
        self.asked.append(("remove", label(request.urn)))
        try:
            self.remove(type_, name, request.id, _values(request.properties))
        except Failure as reason:
            context.abort(grpc.StatusCode.UNKNOWN, str(reason))
        return empty_pb2.Empty()

    def Read(self, request: Any, _context: Any) -> Any:
        """What a resource is now, for `pulumi refresh`; no id if it is gone."""
        found = self.look(*_type_and_name(request.urn), request.id, _values(request.properties))
        if found is None:
            return provider_pb2.ReadResponse()
        return provider_pb2.ReadResponse(id=request.id, properties=_struct(found), inputs=request.inputs)

    def Invoke(self, request: Any, context: Any) -> Any:
        """Answer a question about the region; refuse by name one to which there is no answer."""
        try:
            values = answers.answer(self.invokes, request.tok, _values(request.args))
        except answers.UnknownInvoke as error:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error))
        except answers.Refused as reason:
            return provider_pb2.InvokeResponse(failures=[provider_pb2.CheckFailure(reason=str(reason))])
        return provider_pb2.InvokeResponse(**{"return": _struct(values)})


def label(urn: str) -> str:
    """A resource's class and name in the program, which together are its own: Subnet:network-master."""
    return label_of(*_type_and_name(urn))


def label_of(type_: str, name: str) -> str:
    """The same, of a type and a name."""
    return f"{type_.rpartition(':')[2]}:{name}"


def _type_and_name(urn: str) -> tuple[str, str]:
    """Of a URN: urn:pulumi:STACK::PROJECT::PARENT$TYPE::NAME."""
    _, _, types, name = urn.split("::", 3)
    return types.split("$")[-1], name


def _values(struct: Any) -> Values:
    """Plain values; whole numbers, which the wire knows only as floats, as int."""
    return {key: _whole(value) for key, value in json_format.MessageToDict(struct).items()}


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _struct(values: Mapping[str, Any]) -> Any:
    return json_format.ParseDict(dict(values), struct_pb2.Struct())
