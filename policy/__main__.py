"""The policy pack as Pulumi runs it: `pulumi up --policy-pack policy`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pulumi_policy import (
    EnforcementLevel,
    Policy,
    PolicyPack,
    ResourceValidationPolicy,
    StackValidationPolicy,
)
from pulumi_policy.proxy import UnknownValueError

# Pulumi starts this file by its folder, and the rules name the facts of components/.
sys.path.insert(0, str(Path(__file__).parent.parent))

from policy.pack import RULES, Finding, excepted
from policy.resources import UNKNOWN, Resource, Stack
from policy.rules import Rule

Report = Callable[..., None]


def _plain(value: Any) -> Any:
    """A value without what pulumi_policy wraps around it, which raises where something is not known yet; whole
    numbers, which the wire knows only as floats, as int.
    """
    if isinstance(value, Mapping):
        return {key: _at(value, key) for key in value}
    if hasattr(value, "__getitem__") and not isinstance(value, str):
        return [_at(value, index) for index in range(len(value))]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _at(values: Any, key: Any) -> Any:
    try:
        return _plain(values[key])
    except UnknownValueError:
        return UNKNOWN


def _resource(given: Any) -> Resource:
    refers = {
        argument: frozenset(used.urn for used in resources)
        for argument, resources in getattr(given, "property_dependencies", {}).items()
    }
    return Resource(given.resource_type, given.name, _plain(given.props), given.urn, refers)


def _policy(rule: Rule) -> Policy:
    """A rule as Pulumi calls it: before a resource is made, or with the whole stack."""

    def one(given: Any, report: Report) -> None:
        tell(Stack([_resource(given)]), report)

    def all_(given: Any, report: Report) -> None:
        tell(Stack([_resource(resource) for resource in given.resources]), report)

    def tell(stack: Stack, report: Report) -> None:
        for resource, problem in rule.problems(stack):
            if not excepted(Finding(rule.id, resource, problem), stack):
                report(f"{resource.label}: {problem}", resource.urn)

    form = StackValidationPolicy if rule.whole else ResourceValidationPolicy
    return form(name=rule.id, description=rule.title, validate=all_ if rule.whole else one)


PolicyPack(
    name="openquake-cluster",
    enforcement_level=EnforcementLevel.MANDATORY,
    policies=[_policy(rule) for rule in RULES],
)
