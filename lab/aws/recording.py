"""What a run of the program has registered: what the unit tests look at, and what the lab makes real.

Apart from what records it, which takes Pulumi's library along.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recorded:
    """One registered resource: what the program said of it, and the outputs it was given.

    `parent`, `dependencies` and `property_dependencies` hold URNs; `timeouts` maps create, update and delete
    to texts such as 10m, where the program sets them. In a preview, unknown values are UNKNOWN. A provider knows no
    more of a resource than type, name, id, inputs and outputs.
    """

    type: str
    name: str
    id: str
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    urn: str = ""
    custom: bool = True
    parent: str = ""
    protect: bool = False
    retain_on_delete: bool = False
    delete_before_replace: bool = False
    ignore_changes: tuple[str, ...] = ()
    replace_on_changes: tuple[str, ...] = ()
    timeouts: dict[str, str] = field(default_factory=dict)
    dependencies: frozenset[str] = frozenset()
    property_dependencies: dict[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """Everything that one run of the program registered, and what it exported.

    `component_outputs` maps the URN of each component that registered its outputs to them; `warnings` is what
    Pulumi would show to the user, such as the SDK's complaints about something deprecated.
    """

    resources: list[Recorded] = field(default_factory=list)
    exports: dict[str, Any] = field(default_factory=dict)
    component_outputs: dict[str, dict[str, Any]] = field(default_factory=dict)
    invokes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def of_type(self, type_: str) -> list[Recorded]:
        """The resources of a type, such as aws:ec2/instance:Instance, by name."""
        return sorted((one for one in self.resources if one.type == type_), key=lambda one: one.name)

    def one(self, type_: str, name: str | None = None) -> Recorded:
        """The only resource of a type, or the one with that name. Raises LookupError if there is no such one."""
        found = [one for one in self.of_type(type_) if name in (None, one.name)]
        if len(found) != 1:
            raise LookupError(f"expected one {type_} {name or ''}, found {[one.name for one in found]}")
        return found[0]

    def by_id(self, id_: str) -> Recorded:
        """The resource with this id. Raises LookupError if there is none."""
        for one in self.resources:
            if one.id == id_:
                return one
        raise LookupError(f"no resource has the id {id_!r}")
