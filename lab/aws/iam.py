"""Which requests IAM's statements allow: actions, resources, and the conditions that the program uses."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from components import facts

Statements = Sequence[Mapping[str, Any]]

# The operators that are evaluated, each of a request's value and one that the condition names.
_OPERATORS: Final[Mapping[str, Callable[[str, str], bool]]] = {
    "StringEquals": lambda value, named: value == named,
    "Bool": lambda value, named: value == named.lower(),
}
KEYS: Final = (
    "aws:PrincipalAccount",
    "aws:SecureTransport",
    "cloudwatch:namespace",
    # No node asks KMS anything or deletes snapshots, so no request has these.
    "kms:ViaService",
    "kms:GrantIsForAWSResource",
    f"ec2:ResourceTag/{facts.SNAPSHOTS_TAG}",
)
"""The keys of a request that conditions may ask for."""
_ELEMENTS: Final = frozenset({"Sid", "Effect", "Principal", "Action", "Resource", "Condition"})


def allowed(
    statements: Statements, action: str, resource: str, keys: Mapping[str, str] | None = None
) -> bool:
    """Whether statements allow an action on a resource: an Allow, and no Deny.

    Args:
        keys: what the request has of KEYS; a condition on a key that it lacks does not hold
    """

    def matches(statement: Mapping[str, Any]) -> bool:
        return (
            any(fnmatch.fnmatchcase(action, pattern) for pattern in _listed(statement["Action"]))
            and any(fnmatch.fnmatchcase(resource, pattern) for pattern in _listed(statement["Resource"]))
            and all(_holds(condition, keys or {}) for condition in _conditions(statement))
        )

    effects = {statement["Effect"] for statement in statements if matches(statement)}
    return effects == {"Allow"}


def unknown(statements: Statements) -> Iterator[str]:
    """What of the statements is not evaluated, a line for each: elements, principals, conditions."""
    for statement in statements:
        yield from (f"the element {element}" for element in sorted(statement.keys() - _ELEMENTS))
        if (principal := statement.get("Principal", "*")) not in ("*", {"AWS": "*"}):
            yield f"the principal {principal}"
        for operator, key, _ in _conditions(statement):
            if operator not in _OPERATORS or key not in KEYS:
                yield f"the condition {operator} on {key}"


def _conditions(statement: Mapping[str, Any]) -> Iterator[tuple[str, str, Sequence[str]]]:
    for operator, keys in statement.get("Condition", {}).items():
        for key, named in keys.items():
            yield operator, key, _listed(named)


def _holds(condition: tuple[str, str, Sequence[str]], keys: Mapping[str, str]) -> bool:
    operator, key, named = condition
    return key in keys and any(_OPERATORS[operator](keys[key], one) for one in named)


def _listed(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value
