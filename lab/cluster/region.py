"""The lab as a region of AWS, for Pulumi's engine: what the program makes is made on this machine, and stays there.

`python -m lab pulumi` is Pulumi's command line in it.

Each resource is remembered in the lab's own directory, and after each change of one the lab becomes what all of them
amount to (`lab.cluster.build.converge`). What Pulumi leaves in the account, the lab still has afterwards.
"""

from __future__ import annotations

import functools
import json
import pickle
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import Any, Final

from lab.aws import answers, resources
from lab.aws.plan import make_plan
from lab.aws.recording import Recorded, Recording
from lab.base import REPOSITORY, LabError
from lab.cluster import build, cluster, fleet
from lab.cluster.cluster import Lab, Say
from lab.cluster.program import own_instance_type
from lab.linux import volumes
from lab.linux.host import Paths
from lab.region import stack
from lab.region.provider import Failure, Provider, Values

VPC: Final = "aws:ec2/vpc:Vpc"
SUBNET: Final = "aws:ec2/subnet:Subnet"
INSTANCE: Final = "aws:ec2/instance:Instance"
VOLUME: Final = "aws:ebs/volume:Volume"
FILE_SYSTEM: Final = "aws:efs/fileSystem:FileSystem"
MOUNT_TARGET: Final = "aws:efs/mountTarget:MountTarget"
ATTACHMENT: Final = "aws:ec2/volumeAttachment:VolumeAttachment"
WAIT: Final = "command:local:Command"
STACK: Final = "dev"
WORKERS: Final = 2
"""The workers among which this machine's cores are shared out: every worker type has as many as one of so many."""


class LabRegion(Provider):
    """A provider that makes on this machine what the engine asks for.

    One cluster at a time; volumes, snapshots and file systems of former ones stay until the lab is taken down.
    Raises Failure with the lab's words where something cannot be made.
    """

    def __init__(self, paths: Paths, say: Say) -> None:
        super().__init__()
        self.invokes = {**answers.INVOKES, **self._answers()}
        self.paths = paths
        self._say = say
        self._lock = threading.RLock()  # the engine makes many resources at once
        self._file = cluster.region_record(paths)
        if not self._file.exists():
            build.refuse_second(paths)
            build.prepare(paths)
            self._file.write_bytes(pickle.dumps({}))
        self._existing: dict[tuple[str, str], Recorded] = pickle.loads(  # noqa: S301  root's own directory
            self._file.read_bytes()
        )
        self.lab: Lab | None = cluster.load(paths) if self._of(VPC) else None

    # --- what the engine has made, changed, removed ---

    def unknown(self, type_: str, name: str, inputs: Values) -> Iterator[str]:
        """What the lab cannot build, known or not."""
        return resources.not_buildable(type_, name, inputs)

    def make(self, type_: str, name: str, id_: str, outputs: Values) -> None:
        """Make a resource; what could not be made does not exist."""
        with self._lock:
            before = dict(self._existing)
            self._existing[type_, id_] = _recorded(type_, name, id_, outputs)
            try:
                self._converge()
            except Failure:
                self._existing = before
                raise
            finally:
                self._save()
        if type_ == WAIT:
            self._wait()

    def change(self, type_: str, name: str, id_: str, _old: Values, new: Values) -> None:
        """Give a resource other properties."""
        with self._lock:
            self._existing[type_, id_] = _recorded(type_, name, id_, new)
            self._save()
            self._converge()
        if type_ == WAIT:
            self._wait()

    def remove(self, type_: str, name: str, id_: str, outputs: Values) -> None:
        """Delete a resource; of a volume that wants it, a snapshot stays."""
        with self._lock:
            if (type_, id_) in self._existing and type_ == VOLUME and outputs.get("finalSnapshot"):
                with _refusing():
                    self._say(f"{name}: {id_} leaves {volumes.take_snapshot(self.paths, id_)}")
            self._existing.pop((type_, id_), None)
            self._save()
            self._converge()

    def look(self, type_: str, _name: str, id_: str, outputs: Values) -> Values | None:
        """What a resource is now: a machine that was terminated by hand is gone."""
        if type_ == INSTANCE and self.lab and id_ not in {node.id for node in self.lab.nodes.values()}:
            return None
        return outputs

    def settle(self) -> None:
        """Do what AWS goes on with after Pulumi has ended: replace the workers that are outdated."""
        if self.lab and self.lab.plan.groups:
            fleet.refresh(self.lab, self._say)

    def _save(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_bytes(pickle.dumps(self._existing))
        new.replace(self._file)

    def _converge(self) -> None:
        """Let the lab become what exists."""
        with _refusing():
            if self._of(VPC):
                recording = Recording(resources=list(self._existing.values()))
                plan = make_plan(recording, volumes.snapshots(self.paths))
                if self.lab is None:
                    self.lab = build.open_vpc(self.paths, plan, build.worker_share(WORKERS))
                build.converge(self.lab, plan, self._say)
            elif self.lab:
                build.close_vpc(self.paths)
                self.lab = None

    def _wait(self) -> None:
        """Wait until the master is ready, as the program's own command does through SSM."""
        assert self.lab
        with _refusing():
            cluster.wait_until_ready(self.lab, self._say, nodes=[self.lab.master()])

    # --- what the program asks ---

    def _of(self, type_: str) -> list[Recorded]:
        return [one for one in self._existing.values() if one.type == type_]

    def _answers(self) -> dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
        return {
            # Every type has a worker's share of the cores.
            "aws:ec2/getInstanceType:getInstanceType": lambda asked: own_instance_type(
                asked["instanceType"], build.worker_share(WORKERS)
            ),
            "aws:ebs/getVolume:getVolume": self._volume,
            "aws:ebs/getEbsVolumes:getEbsVolumes": functools.partial(self._found, VOLUME),
            "aws:ebs/getSnapshot:getSnapshot": self._snapshot,
            "aws:efs/getFileSystem:getFileSystem": self._file_system,
            "aws:ec2/getInstances:getInstances": self._instances,
            "aws:ec2/getNetworkInterfaces:getNetworkInterfaces": self._mount_targets,
            "aws:ec2/getNetworkInterface:getNetworkInterface": self._mount_target,
            "aws:ec2/getVpcs:getVpcs": functools.partial(self._found, VPC),
            "aws:ec2/getVpc:getVpc": lambda asked: self._get(VPC, asked["id"]),
            "aws:ec2/getSubnets:getSubnets": functools.partial(self._found, SUBNET),
            "aws:ec2/getSubnet:getSubnet": lambda asked: self._get(SUBNET, asked["id"]),
        }

    def _get(self, type_: str, id_: str) -> dict[str, Any]:
        found = self._existing.get((type_, id_))
        if found is None:
            raise answers.Refused(f"{id_} does not exist")
        return {"tags": {}, **found.outputs, "id": id_}

    def _volume(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        id_ = answers.asked(asked, "volume-id")
        return answers.volume_answer(id_, **self._get(VOLUME, id_))

    def _snapshot(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        (id_,) = asked["snapshotIds"]
        sizes = volumes.snapshots(self.paths)
        if id_ not in sizes:
            raise answers.Refused(f"{id_} does not exist")
        return answers.snapshot_answer(id_, volumeSize=sizes[id_])

    def _file_system(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        id_ = asked["fileSystemId"]
        return answers.file_system_answer(id_, **self._get(FILE_SYSTEM, id_))

    def _instances(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The machines with these tags to which a volume is attached."""
        volume = answers.asked(asked, "block-device-mapping.volume-id")
        with_it = {
            one.inputs["instanceId"] for one in self._of(ATTACHMENT) if one.inputs["volumeId"] == volume
        }
        ids = [
            one.id
            for one in self._of(INSTANCE)
            if one.id in with_it and _tagged(one, asked.get("instanceTags") or {})
        ]
        return {"id": "", "ids": ids}

    def _mount_targets(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The network interfaces of a file system's mount targets, or of all; all in the one VPC."""
        wanted = answers.asked(asked, "description")
        targets = self._of(MOUNT_TARGET)
        found = [
            one.id for one in targets if fnmatch(answers.mount_target(one.inputs["fileSystemId"]), wanted)
        ]
        return {"id": "", "ids": [f"eni-{id_.removeprefix('fsmt-')}" for id_ in found]}

    def _mount_target(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The network interface of a mount target."""
        target = self._get(MOUNT_TARGET, f"fsmt-{asked['id'].removeprefix('eni-')}")
        return {"id": asked["id"], "description": answers.mount_target(target["fileSystemId"])}

    def _found(self, type_: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What has these tags; of what is in a VPC all is in the one."""
        found = [one.id for one in self._of(type_) if _tagged(one, asked.get("tags") or {})]
        return {"id": "", "ids": found}


def pulumi(paths: Paths, arguments: Sequence[str], say: Say) -> int:
    """Run a command of Pulumi in the lab's region, on this terminal; its exit status.

    Project, settings and state are in the lab's own directory. The first command makes the stack `dev` with the
    settings of Pulumi.dev.yaml; `stack init` makes others.
    """
    command = stack.find_pulumi()
    if command is None:
        raise LabError("Pulumi's command line is missing: make pulumi-cli builds it, or install it")
    region = LabRegion(paths, say)
    directory = paths.state / "pulumi"
    with stack.served(region) as environment:
        surroundings = {**stack.surroundings(directory), **environment}

        def run(*words: str) -> int:
            return subprocess.run([command, *words], cwd=directory, env=surroundings, check=False).returncode

        if not directory.exists():
            stack.make_project(directory)
            shutil.copy(REPOSITORY / f"Pulumi.{STACK}.yaml", directory)
            run("stack", "init", STACK)
        # Ctrl-C is Pulumi's, which ends the update in order; this process would otherwise kill it.
        former = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            status = run(*arguments)
        finally:
            signal.signal(signal.SIGINT, former)
        region.settle()
    return status


def outputs(paths: Paths) -> dict[str, Any]:
    """The outputs of the stack that `pulumi` has worked on last; LabError when it has none."""
    command = stack.find_pulumi()
    if command is None:
        raise LabError("Pulumi's command line is missing: make pulumi-cli builds it, or install it")
    directory = paths.state / "pulumi"
    done = subprocess.run(
        [command, "stack", "output", "--json"],
        cwd=directory,
        env=stack.surroundings(directory),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise LabError(f"pulumi stack output: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def _refusing() -> Iterator[None]:
    """What the lab cannot do is for Pulumi what AWS refuses, in the same words."""
    try:
        yield
    except LabError as error:
        raise Failure(str(error)) from error


def _recorded(type_: str, name: str, id_: str, outputs: Values) -> Recorded:
    arguments = resources.TYPES[type_].arguments
    inputs = {key: value for key, value in outputs.items() if key in arguments}
    return Recorded(type_, name, id_, inputs, outputs)


def _tagged(one: Recorded, tags: Mapping[str, str]) -> bool:
    own: dict[str, str] = one.inputs.get("tags", {})
    return tags.items() <= own.items()
