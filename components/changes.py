"""What a change of a setting does to a cluster that exists. No Pulumi in here."""

from __future__ import annotations

from enum import Enum


class Change(Enum):
    """One thing that `pulumi up` does when a setting has changed.

    `does` and `notice` are what docs/operations.md says of it; tests/engine says by which steps of Pulumi's engine each
    is known, and compares them with what the engine does.
    """

    MASTER_REPLACED = ("**replaces the master**", "running calculations end; data stay")
    MASTER_RESIZED = ("stops the master, changes its type, starts it", "running calculations end; data stay")
    WORKERS_ROLLED = ("rolls the workers", "running tasks finish first (see below)")
    FLEET_SIZE = (
        "changes the group and its scaling policies",
        "workers above a lower `workerMax` drain, a higher `workerMin` starts workers; the others stay",
    )
    NUM_CORES = (
        "tells the master the new size of the full fleet",
        "within a minute `num_cores` follows; calculations that begin afterwards use the new fleet size",
    )
    IDLE_STOP = ("tells the master when to stop itself", "takes effect within a minute")
    PRICE = (
        "tells the master the new price of a worker",
        "calculations that begin a minute later use the new price; those of the WebUI after its next restart",
    )
    HOOK = ("changes the group's lifecycle hook", "")
    RULES = ("changes rules of the security groups", "")
    VOLUME_GROWN = (
        "grows the volume; a smaller size is refused, since EBS never shrinks",
        "within two minutes its file system has the new size, too; of a volume that was taken over (`vol-…`) it "
        "changes nothing, as a warning says: `aws ec2 modify-volume --volume-id vol-… --size GB` grows that",
    )
    DATA_EXCHANGED = (
        "replaces the data: the named volume or file system, or a volume made from the named snapshot, takes the place "
        "of the current one",
        "the current one stays in the account if `keepDataOnDestroy` was true in the `pulumi up` before (both at once "
        "are refused); otherwise it is deleted as by `pulumi destroy`: a volume leaves a final snapshot, a file system "
        "nothing",
    )
    BACKUPS = ("changes the retention of new snapshots, or turns backups on or off", "")
    MAILS = (
        "changes who is told, or makes or removes the alarms",
        "AWS asks a new address to confirm",
    )
    BUDGET = ("makes, changes or removes the budget", "")
    KEPT_IN_STATE = (
        "changes a tag of the volumes and the file system",
        "the next `pulumi up` or `pulumi destroy` that removes one follows it, not this one",
    )
    WAIT = ("changes nothing on AWS", "this and later `pulumi up` wait accordingly")
    WAY_OUT = (
        "adds or removes the NAT gateway and the endpoints",
        "machines stay unless the image changes: `endpoints` needs an [`amiId`](#an-image-with-everything-baked-in)",
    )
    REFUSED = (
        "is refused, before anything is touched: AWS changes neither a network nor the zone or the key of a disk",
        "make another stack, which can adopt the data",
    )

    def __init__(self, does: str, notice: str) -> None:
        self.does = does
        self.notice = notice
