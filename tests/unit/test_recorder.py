"""The recorder itself: were it to lose an option or an error, the tests that look at recordings would show
nothing.
"""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from lab.aws.answers import Refused, UnknownInvoke
from lab.aws.recorder import UNKNOWN, run_program


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Where a test writes a program of its own."""
    return tmp_path / "__main__.py"


def write(program: Path, text: str) -> Path:
    program.write_text("import pulumi\nimport pulumi_aws as aws\n" + dedent(text))
    return program


def test_options_that_pulumis_mocks_drop_are_kept(program: Path) -> None:
    write(
        program,
        """
        first = aws.ec2.Vpc("first", cidr_block="10.0.0.0/16")
        aws.ec2.Vpc("second", cidr_block="10.1.0.0/16", opts=pulumi.ResourceOptions(
            parent=first, protect=True, retain_on_delete=True, delete_before_replace=True,
            ignore_changes=["cidr_block"], replace_on_changes=["tags"], depends_on=[first],
            custom_timeouts=pulumi.CustomTimeouts(create="3m", delete="2h"),
        ))
        """,
    )
    recording = run_program({}, program=program)
    first, second = recording.of_type("aws:ec2/vpc:Vpc")
    assert (second.protect, second.retain_on_delete, second.delete_before_replace) == (True, True, True)
    assert (second.ignore_changes, second.replace_on_changes) == (("cidrBlock",), ("tags",))
    assert (second.timeouts, first.timeouts) == ({"create": "3m", "delete": "2h"}, {})
    assert second.parent == first.urn
    assert second.dependencies == {first.urn}
    assert (first.protect, first.retain_on_delete, first.delete_before_replace) == (False, False, False)
    assert (first.ignore_changes, first.replace_on_changes, first.dependencies) == ((), (), frozenset())


def test_what_an_input_was_made_from_is_kept(program: Path) -> None:
    write(
        program,
        """
        vpc = aws.ec2.Vpc("vpc", cidr_block="10.0.0.0/16")
        aws.ec2.Subnet("subnet", vpc_id=vpc.id, cidr_block="10.0.0.0/24")
        """,
    )
    recording = run_program({}, program=program)
    vpc, subnet = recording.one("aws:ec2/vpc:Vpc"), recording.one("aws:ec2/subnet:Subnet")
    assert subnet.inputs == {"vpcId": vpc.id, "cidrBlock": "10.0.0.0/24"}
    assert subnet.property_dependencies["vpcId"] == {vpc.urn}
    assert recording.by_id(vpc.id) is vpc


def test_exports_are_plain_values_and_unknown_in_a_preview(program: Path) -> None:
    write(
        program,
        """
        volume = aws.ebs.Volume("v", availability_zone="a", size=8)
        pulumi.export("id", volume.id)
        pulumi.export("listed", [volume.size, pulumi.Output.secret("s"), {"deep": volume.arn}])
        """,
    )
    volume = run_program({}, program=program).one("aws:ebs/volume:Volume")
    assert volume.id.startswith("vol-0")
    assert len(volume.id) == len("vol-0123456789abcdef0")
    assert run_program({}, program=program).exports == {
        "id": volume.id,
        "listed": [8, "s", {"deep": volume.outputs["arn"]}],
    }
    assert run_program({}, program=program, preview=True).exports == {
        "id": UNKNOWN,
        "listed": [8, "s", {"deep": UNKNOWN}],
    }


def test_a_stash_gives_what_it_has_kept_and_the_new_value_only_the_first_time(program: Path) -> None:
    write(program, "pulumi.export('kept', pulumi.Stash('s', input='new').output)")
    assert run_program({}, program=program).exports == {"kept": "new"}
    for preview in (False, True):  # Pulumi's engine keeps it, so that a preview knows it
        kept = run_program({}, preview=preview, stashed={"s": "old"}, program=program)
        assert kept.exports == {"kept": "old"}
        assert kept.one("pulumi:index:Stash").inputs == {"input": "new"}


def test_configuration_reaches_the_program_and_only_that_of_this_run(program: Path) -> None:
    write(
        program,
        """
        config = pulumi.Config()
        pulumi.export("seen", [config.get("egress"), pulumi.Config("aws").get("region"), pulumi.get_stack()])
        """,
    )
    first = run_program({"egress": "nat", "aws:region": "eu-west-1"}, stack="one", program=program)
    assert first.exports["seen"] == ["nat", "eu-west-1", "one"]
    second = run_program({"openquake-cluster:egress": "endpoints"}, program=program)
    assert second.exports["seen"] == ["endpoints", None, "test"]


def test_a_question_to_aws_that_it_has_no_answer_to_is_refused_by_name(program: Path) -> None:
    write(program, "aws.ec2.get_vpc(id='vpc-1')")
    with pytest.raises(UnknownInvoke, match=r"aws:ec2/getVpc:getVpc\(\{'id': 'vpc-1'\}\)"):
        run_program({}, program=program)
    answer = {"aws:ec2/getVpc:getVpc": {"id": "vpc-1", "cidrBlock": "10.0.0.0/16"}}
    assert run_program({}, program=program, invokes=answer).invokes == [
        ("aws:ec2/getVpc:getVpc", {"id": "vpc-1"})
    ]


def test_awss_refusal_reaches_the_program(program: Path) -> None:
    def refuse(_args: object) -> dict[str, str]:
        raise Refused("no such VPC")

    write(program, "aws.ec2.get_vpc(id='vpc-1')")
    with pytest.raises(Exception, match="no such VPC"):
        run_program({}, program=program, invokes={"aws:ec2/getVpc:getVpc": refuse})


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1 / 0", "division by zero"),
        ("pulumi.Output.from_input(1).apply(lambda one: one / 0)", "division by zero"),
        (
            "aws.ec2.Vpc('v', cidr_block=pulumi.Output.from_input(1).apply(lambda one: one / 0))",
            "division by zero",
        ),
        ("aws.ec2.Vpc('v'), aws.ec2.Vpc('v')", "registers urn:.*::v twice"),
        ("str(aws.ec2.Vpc('v').id)", "not supported"),
    ],
    ids=["in the program", "in an apply", "in an input", "a name twice", "an output as text"],
)
def test_whatever_goes_wrong_in_the_program_is_raised_and_the_next_run_is_not_touched(
    program: Path, text: str, error: str
) -> None:
    write(program, text)
    with pytest.raises(Exception, match=error):
        run_program({}, program=program)
    assert run_program({}, program=write(program, "")).resources == []


def test_what_the_sdk_warns_of_is_kept(program: Path) -> None:
    """Without this, test_the_program_uses_nothing_that_is_deprecated could not fail."""
    write(program, "aws.s3.BucketV2('b')")
    assert "BucketV2 is deprecated" in " ".join(run_program({}, program=program).warnings)
