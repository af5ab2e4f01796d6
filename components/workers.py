"""The workers: an Auto Scaling group of machines that run Celery and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import pulumi
import pulumi_aws as aws

from components import facts, userdata
from components.capacity import hook_seconds
from components.component import Component
from components.instance_types import Architecture
from components.lookups import Image
from components.roles import NodeRole, NodeRoleArgs, document
from components.secrets import Secrets
from components.settings import WorkerStorage
from components.tags import cluster_name

_ROOT_GB: Final = 20  # "less than 20GB are usually enough", says OpenQuake's manual of a worker
# From an instance's being in service to its first task, with room; meanwhile the group does not scale in either, and
# the alarm that asks for that needs a minute or two to notice a job that begins.
WARMUP_SECONDS: Final = 120
IN_SERVICE_METRIC: Final = aws.autoscaling.Metric.GROUP_IN_SERVICE_INSTANCES
"""AWS's name of how many machines of a group run and are not about to go."""
# Deleting the group waits until its machines are gone. AWS ends one by force some minutes after it was told to go; the
# provider's ten minutes may be fewer than many of them take, and systemd's own limit is JobTimeoutSec=30min.
# https://github.com/systemd/systemd/blob/main/units/poweroff.target
_GROUP_GONE: Final = pulumi.CustomTimeouts(delete="45m")


@dataclass(frozen=True)
class WorkersArgs:
    """What the fleet is made from.

    `instance_types` come in order of preference; the first `on_demand_base` workers are no spot capacity even with
    `spot`; `nfs_addresses` is keyed by zone; `key` is the ARN of the root disks' key, "" for AWS's own. Workers start
    after everything in `after`.
    """

    region: str
    architecture: Architecture
    instance_types: Sequence[str]
    image: pulumi.Output[Image]
    minimum: int
    desired: int
    maximum: int
    spot: bool
    on_demand_base: int
    storage: WorkerStorage
    drain_minutes: int
    subnet_ids: Sequence[pulumi.Input[str]]
    security_group_id: pulumi.Input[str]
    master_address: IPv4Address
    nfs_addresses: Mapping[str, IPv4Address]
    file_system_id: pulumi.Input[str]
    bundle_sha256: str
    secrets: Secrets
    key: str
    after: Sequence[pulumi.Resource]


class Workers(Component):
    """A launch template and the group that starts machines from it, over all zones.

    The number of machines belongs to whoever scales the group, after its creation. Whatever ends a machine of
    the group (scaling in, a change of the template, a rebalance of spot capacity) goes through the group's
    drain hook: the machine takes no more tasks, and has `drain_minutes` for those that it runs.

    A change of the template replaces the machines by and by, half of them at a time (of a single one AWS starts the new
    one first, for minutes one more than the maximum); AWS counts a new one as serving two minutes after its start,
    whatever it does. Spot capacity that AWS thinks it will take back is replaced before it goes.
    """

    group_name: pulumi.Output[str]

    def __init__(self, name: str, args: WorkersArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        role = NodeRole(
            name,
            NodeRoleArgs(statements=[args.secrets.cluster.reader(), *args.secrets.key_reader]),
            opts=self.child(),
        )
        template = self._template(args, role)
        group = aws.autoscaling.Group(
            self.named("group"),
            min_size=args.minimum,
            desired_capacity=args.desired,
            max_size=args.maximum,
            vpc_zone_identifiers=args.subnet_ids,
            mixed_instances_policy=_policy(args, template),
            capacity_rebalance=args.spot,
            suspended_processes=["AZRebalance"],  # no worker ends for the zones' balance: its tasks cost more
            health_check_type="EC2",
            enabled_metrics=[IN_SERVICE_METRIC],  # for the alarm; AWS charges nothing for a group's metrics
            metrics_granularity="1Minute",
            # A worker waits for the master's engine, so the group does not wait for the workers.
            wait_for_capacity_timeout="0",
            instance_refresh=aws.autoscaling.GroupInstanceRefreshArgs(
                strategy="Rolling",
                preferences=aws.autoscaling.GroupInstanceRefreshPreferencesArgs(
                    min_healthy_percentage=50, instance_warmup=str(WARMUP_SECONDS)
                ),
            ),
            tags=[
                aws.autoscaling.GroupTagArgs(key=key, value=value, propagate_at_launch=True)
                for key, value in self.tags("worker").items()
            ],
            opts=self.child(
                ignore_changes=["desired_capacity"],
                custom_timeouts=_GROUP_GONE,
                depends_on=[*role.policies, *args.after],
            ),
        )
        self.group_name = group.name
        self._drain(args, role, group)
        self.register_outputs({"groupName": self.group_name})

    def _drain(self, args: WorkersArgs, role: NodeRole, group: aws.autoscaling.Group) -> None:
        """Let the group wait for a worker that has to go, until the worker says that it can."""
        # Not one of the group's initial hooks, which AWS takes only when the group is made: this one follows
        # the settings, and `destroy` removes it before the group, and so does not wait for idle workers.
        aws.autoscaling.LifecycleHook(
            self.named("drain"),
            name=facts.DRAIN_HOOK,
            autoscaling_group_name=group.name,
            lifecycle_transition="autoscaling:EC2_INSTANCE_TERMINATING",
            heartbeat_timeout=hook_seconds(args.drain_minutes),
            default_result="CONTINUE",  # a worker that says nothing is gone already, or as good as gone
            opts=self.child(),
        )
        # A policy of its own, since the group does not exist when its machines' role is made.
        aws.iam.RolePolicy(
            self.named("drain"),
            role=role.name,
            policy=document(
                {
                    "Effect": "Allow",
                    "Action": ["autoscaling:CompleteLifecycleAction"],
                    "Resource": group.arn,
                }
            ),
            opts=self.child(),
        )

    def _template(self, args: WorkersArgs, role: NodeRole) -> aws.ec2.LaunchTemplate:
        return aws.ec2.LaunchTemplate(
            self.named("template"),
            image_id=args.image.apply(lambda image: image.id),
            iam_instance_profile=aws.ec2.LaunchTemplateIamInstanceProfileArgs(arn=role.profile_arn),
            network_interfaces=[
                aws.ec2.LaunchTemplateNetworkInterfaceArgs(
                    device_index=0,
                    associate_public_ip_address="false",
                    delete_on_termination="true",
                    security_groups=[args.security_group_id],
                )
            ],
            metadata_options=aws.ec2.LaunchTemplateMetadataOptionsArgs(
                http_endpoint="enabled",
                http_tokens="required",
                http_put_response_hop_limit=1,
                instance_metadata_tags="enabled",  # a worker finds its group's name there
            ),
            block_device_mappings=[
                aws.ec2.LaunchTemplateBlockDeviceMappingArgs(
                    device_name=args.image.apply(lambda image: image.root_device),
                    ebs=aws.ec2.LaunchTemplateBlockDeviceMappingEbsArgs(
                        volume_type="gp3",
                        volume_size=args.image.apply(lambda image: max(_ROOT_GB, image.root_gb)),
                        encrypted="true",
                        kms_key_id=args.key or None,
                        delete_on_termination="true",
                    ),
                )
            ],
            user_data=pulumi.Output.all(
                secret_id=args.secrets.cluster.arn, file_system_id=args.file_system_id
            ).apply(lambda known: _user_data(args, known)),
            tag_specifications=[
                aws.ec2.LaunchTemplateTagSpecificationArgs(resource_type=kind, tags=self.tags("worker"))
                for kind in ("instance", "volume", "network-interface")
            ],
            update_default_version=True,
            tags=self.tags("template"),
            opts=self.child(),
        )


def _user_data(args: WorkersArgs, known: Mapping[str, str]) -> str:
    return userdata.user_data(
        userdata.WorkerNode(
            region=args.region,
            architecture=args.architecture,
            master_address=str(args.master_address),
            bundle_sha256=args.bundle_sha256,
            nfs_addresses={zone: str(address) for zone, address in args.nfs_addresses.items()},
            storage=args.storage,
            cluster=cluster_name(pulumi.get_stack()),
            drain_seconds=args.drain_minutes * 60,
            **known,
        )
    )


def _policy(
    args: WorkersArgs, template: aws.ec2.LaunchTemplate
) -> aws.autoscaling.GroupMixedInstancesPolicyArgs:
    """On demand, or spot beyond the base, from any of the instance types."""
    return aws.autoscaling.GroupMixedInstancesPolicyArgs(
        launch_template=aws.autoscaling.GroupMixedInstancesPolicyLaunchTemplateArgs(
            launch_template_specification=(
                aws.autoscaling.GroupMixedInstancesPolicyLaunchTemplateLaunchTemplateSpecificationArgs(
                    launch_template_id=template.id, version=template.latest_version.apply(str)
                )
            ),
            overrides=[
                aws.autoscaling.GroupMixedInstancesPolicyLaunchTemplateOverrideArgs(
                    instance_type=instance_type
                )
                for instance_type in args.instance_types
            ],
        ),
        instances_distribution=aws.autoscaling.GroupMixedInstancesPolicyInstancesDistributionArgs(
            on_demand_base_capacity=args.on_demand_base,
            on_demand_percentage_above_base_capacity=0 if args.spot else 100,
            on_demand_allocation_strategy="prioritized",
            spot_allocation_strategy="price-capacity-optimized",
        ),
    )
