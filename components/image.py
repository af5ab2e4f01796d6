"""The one machine image of all nodes."""

from __future__ import annotations

from dataclasses import dataclass

import pulumi

from components.component import Component
from components.instance_types import Architecture
from components.lookups import Image, describe_image
from components.settings import Problem, SettingsError


@dataclass(frozen=True)
class NodeImageArgs:
    """The image that the settings name (`named`), or else Debian's newest."""

    image: Image
    named: bool
    architecture: Architecture


class NodeImage(Component):
    """The image that the settings name; or else Debian's newest of the day on which this first came into the
    stack, whatever Debian publishes afterwards.

    Its id is kept in the stack's state by a Stash, whose output never changes. With ignore_changes on the machines
    themselves, a master that is replaced for another reason would boot from the image of that day, since Pulumi
    takes the inputs of a replacement from the program.
    """

    image: pulumi.Output[Image]

    def __init__(self, name: str, args: NodeImageArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)

        def described(image_id: str) -> Image:
            if image_id == args.image.id:
                return args.image
            try:
                return describe_image(image_id, args.architecture)
            except ValueError as error:  # withdrawn by Debian: said before the master that runs is taken down
                raise pulumi.RunError(str(SettingsError([Problem("amiId", "", str(error))]))) from None

        if args.named:
            self.image = pulumi.Output.from_input(args.image)
        else:
            # Without ignore_changes every newer image would be shown as a change of the stash, though its output stays.
            stash = pulumi.Stash(
                self.named("debian"), input=args.image.id, opts=self.child(ignore_changes=["input"])
            )
            self.image = stash.output.apply(described)
        self.register_outputs({"id": self.image.apply(lambda image: image.id)})
