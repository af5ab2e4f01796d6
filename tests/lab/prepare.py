"""What the lanes of the lab's tests would wait for each other with: `python -m tests.lab.prepare`.

The images of the nodes and the engine go into the cache, while there is something else to do for this machine.
"""

from __future__ import annotations

from lab.aws.plan import make_plan
from lab.cluster import cache
from lab.cluster.program import record
from lab.linux import host
from tests.lab.conftest import OWN_IMAGE, configuration, have_engine, own_name, paths_of


def main() -> None:
    """Build what the cache lacks; status 0 also where this machine cannot be a lab, which the tests say."""
    with own_name() as name:
        paths = paths_of(name)
        if lacks := host.missing(paths):
            print(f"no lab here: {', '.join(lacks)} missing")
            return
        have_engine(paths)
        cache.nodes_image(paths, make_plan(record(configuration(egress="endpoints", amiId=OWN_IMAGE))), print)


if __name__ == "__main__":
    main()
