"""What all components have in common: their type token, the names, tags and options of their children."""

from __future__ import annotations

from typing import Any

import pulumi

from components import facts
from components.tags import tags


class Component(pulumi.ComponentResource):
    """A component of the cluster; its children are named after it and have it as their parent."""

    def __init__(self, name: str, opts: pulumi.ResourceOptions | None) -> None:
        super().__init__(f"{facts.PROJECT}:component:{type(self).__name__}", name, None, opts)
        self._prefix = name

    def named(self, child: str) -> str:
        """The resource name of a child."""
        return f"{self._prefix}-{child}"

    def tags(self, child: str) -> dict[str, str]:
        """The tags of a child."""
        return tags(pulumi.get_stack(), self.named(child))

    def child(self, **options: Any) -> pulumi.ResourceOptions:
        """The options of a child: this component as parent, and `options`.

        Order comes from `depends_on` alone: what a component depends on, its children do not inherit.
        """
        return pulumi.ResourceOptions(parent=self, **options)
