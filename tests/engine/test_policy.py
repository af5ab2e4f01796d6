"""The policy pack under Pulumi's real engine, as `pulumi up --policy-pack policy` runs it.

Its process is started by the language host, as with Pulumi's own Python host, in the pack's own environment.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pulumi.runtime.proto import language_pb2

from lab.base import REPOSITORY
from lab.region import stack as region_stack
from lab.region.language_host import LanguageHost
from lab.region.stack import CommandError, Stack, served
from tests.engine.conftest import SETTINGS, Region

PACK = REPOSITORY / "policy"
PYTHON = PACK / ".venv/bin/python"


class PolicyHost(LanguageHost):
    """A language host that runs policy packs, too."""

    def RunPlugin(self, request: Any, context: Any) -> Iterator[Any]:
        """Run a pack: it prints the port at which it answers, and ends when the engine has gone."""
        surroundings = os.environ | dict(pair.split("=", 1) for pair in request.env)
        command = [PYTHON, "-u", request.info.program_directory, *request.args]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=surroundings)
        if not context.add_callback(process.kill):  # the engine has gone already
            process.kill()
        assert process.stdout is not None
        for line in process.stdout:
            yield language_pb2.RunPluginResponse(stdout=line)
        yield language_pb2.RunPluginResponse(exitcode=process.wait())


@pytest.fixture
def guarded(pulumi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Stack, Region]]:
    """A stack without resources, and its region, where Pulumi runs policy packs."""
    if not PYTHON.exists():
        pytest.fail("the policy pack has no environment: make policy-pack")
    monkeypatch.setattr(region_stack, "LanguageHost", PolicyHost)
    region = Region()
    with served(region) as environment:
        stack = Stack(pulumi, tmp_path / "stack", environment).init()
        stack.configure(**SETTINGS)
        yield stack, region


def with_program(stack: Stack, directory: Path, text: str) -> Stack:
    """The stack with a program of its own, which is no cluster."""
    directory.mkdir()
    (directory / "__main__.py").write_text(f"import pulumi_aws as aws\n{text}\n")
    linked = stack.directory / "program"
    linked.unlink()
    linked.symlink_to(directory)
    return stack


def test_the_pack_lets_the_cluster_through_in_preview_and_up(guarded: tuple[Stack, Region]) -> None:
    stack, region = guarded
    for command in (("preview",), ("up", "--yes", "--skip-preview")):
        said = stack.run(*command, f"--policy-pack={PACK}")
        assert "✅ openquake-cluster" in said
        assert "[mandatory]" not in said
        assert "can't run policy" not in said
    assert ("make", "Instance:master-instance") in region.asked


def test_the_pack_stops_a_resource_before_it_is_made(guarded: tuple[Stack, Region], tmp_path: Path) -> None:
    stack, region = guarded
    text = 'aws.ebs.Volume("home", availability_zone="eu-central-1a", size=8)'
    broken = with_program(stack, tmp_path / "program", text)
    with pytest.raises(CommandError) as error:
        broken.up(f"--policy-pack={PACK}")
    assert "[mandatory]  encrypted-volumes" in str(error.value)
    assert "Volume:home: encrypted is None, not True" in str(error.value)
    assert region.asked == []


def test_the_pack_sees_in_a_preview_what_only_the_whole_stack_shows(
    guarded: tuple[Stack, Region], tmp_path: Path
) -> None:
    stack, _ = guarded
    text = (
        'vpc = aws.ec2.Vpc("other", cidr_block="10.0.0.0/16")\n'
        'group = aws.ec2.SecurityGroup("web", vpc_id=vpc.id, description="web")\n'
        'aws.vpc.SecurityGroupIngressRule("in", security_group_id=group.id, ip_protocol="tcp", from_port=22,'
        ' to_port=22, cidr_ipv4="10.0.0.0/8", description="shell")'
    )
    broken = with_program(stack, tmp_path / "program", text)
    with pytest.raises(CommandError) as error:
        broken.run("preview", f"--policy-pack={PACK}")
    said = str(error.value)
    assert "Vpc:other: no FlowLog of it" in said
    assert "SecurityGroupIngressRule:in: a group that nothing is in takes tcp 22 to 22 from clients" in said
