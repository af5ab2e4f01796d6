"""What a rule is, and the forms that most rules have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from policy.resources import UNKNOWN, Resource, Stack

Check = Callable[[Resource, Stack], str]
"""What is wrong with a resource, in words; empty if nothing is."""


ON_ALL: Final = " on all resources"


class Allows(str):
    """A problem of a policy: what it allows, and where. An exception looks at its `actions`."""

    actions: frozenset[str]

    def __new__(cls, actions: Iterable[str], where: str = "") -> Allows:
        """The text; empty where there are no actions, which is no problem."""
        named = list(actions)
        problem = super().__new__(cls, f"allows {', '.join(named)}{where}" if named else "")
        problem.actions = frozenset(named)
        return problem


@dataclass(frozen=True)
class Rule:
    """A rule or control.

    `id` is its own name or the standard's id, `title` what is so where it holds, `types` those of the resources that it
    looks at. One that looks at more than a resource alone (`whole`) can be told of a stack only.
    """

    id: str
    title: str
    types: tuple[str, ...]
    check: Check
    whole: bool = False

    def problems(self, stack: Stack) -> Iterator[tuple[Resource, str]]:
        """The resources that break the rule, each with what is wrong."""
        for resource in stack.of(*self.types):
            if problem := self.check(resource, stack):
                yield resource, problem


def wants(path: str, *good: Any) -> Check:
    """Every value at a path is one of these. What is not known yet is no problem."""

    def check(resource: Resource, _stack: Stack) -> str:
        bad = [value for value in resource.values(path) if value not in good and value != UNKNOWN]
        return f"{path} is {bad[0]}, not {' or '.join(map(str, good))}" if bad else ""

    return check


def needs(path: str) -> Check:
    """There is a value at a path."""

    def check(resource: Resource, _stack: Stack) -> str:
        return "" if any(resource.values(path)) else f"{path} is missing"

    return check


def refuses(path: str, *bad: Any) -> Check:
    """No value at a path is one of these."""

    def check(resource: Resource, _stack: Stack) -> str:
        found = [value for value in resource.values(path) if value in bad]
        return f"{path} is {found[0]}" if found else ""

    return check


def has(argument: str, *types: str) -> Check:
    """Another resource, of one of these types, refers to it by an argument."""

    def check(resource: Resource, stack: Stack) -> str:
        names = ", ".join(type_.rpartition(":")[2] for type_ in types)
        return "" if stack.users(resource, argument, *types) else f"no {names} of it"

    return check


def all_of(*checks: Check) -> Check:
    """All checks hold; the first problem is told."""
    return lambda resource, stack: next(filter(None, (check(resource, stack) for check in checks)), "")
