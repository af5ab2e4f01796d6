"""The master: the one machine with RabbitMQ, DbServer and WebUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any, Final

import pulumi
import pulumi_aws as aws

from components import facts, userdata
from components.bundle import BundleStore
from components.component import Component
from components.instance_types import Architecture
from components.lookups import Image
from components.roles import NodeRole, NodeRoleArgs
from components.secrets import Secrets, reading
from components.storage import volume_name
from components.tags import cluster_name

_GROUP_ACTIONS: Final = (
    "autoscaling:DescribeAutoScalingGroups",
    "autoscaling:DescribeScalingActivities",
)
# What the Session Manager agent calls. Not the managed policy AmazonSSMManagedInstanceCore, by which everybody on the
# machine could read all of the account's parameters. Those of ssm could be narrowed to the machine, which does not
# exist yet when its role is made; the others know no resources.
# https://docs.aws.amazon.com/systems-manager/latest/userguide/systems-manager-setting-up-messageAPIs.html
_AGENT_ACTIONS: Final = (
    "ssm:UpdateInstanceInformation",
    "ssm:ListInstanceAssociations",
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
    # agents before 3.3.40
    "ec2messages:AcknowledgeMessage",
    "ec2messages:DeleteMessage",
    "ec2messages:FailMessage",
    "ec2messages:GetEndpoint",
    "ec2messages:GetMessages",
    "ec2messages:SendReply",
)
# AWS's names for data volumes; the node finds the volumes by their ids and never uses these.
_DEVICES: Final = ("/dev/sdf", "/dev/sdg", "/dev/sdh")


@dataclass(frozen=True)
class MasterArgs:
    """What the master is made from.

    `certificate_secret` is the ARN of the secret that `webui_certificate` names, "" if it names none,
    `volume_ids` is keyed by mount point, `nfs_addresses` by zone, `fleet_processes` is the number of worker
    processes of the full fleet, `process_hour` what an hour of one of them costs in USD, "" if that is not known,
    `key` the ARN of the root disk's key, "" for AWS's own. After `stop_when_idle_minutes` in which nobody needs it the
    master stops itself; 0 is never. The machine starts after everything in `after`.
    """

    region: str
    architecture: Architecture
    instance_type: str
    image: pulumi.Output[Image]
    webui: bool
    webui_login: bool
    webui_certificate: str
    certificate_secret: str
    address: IPv4Address
    subnet_id: pulumi.Input[str]
    security_group_id: pulumi.Input[str]
    volume_ids: Mapping[str, pulumi.Input[str]]
    nfs_addresses: Mapping[str, IPv4Address]
    file_system_id: pulumi.Input[str]
    fleet_processes: int
    stop_when_idle_minutes: int
    process_hour: str
    secrets: Secrets
    bundle: BundleStore
    key: str
    after: Sequence[pulumi.Resource]


class Master(Component):
    """An instance with a fixed private address and the data volumes attached.

    The address belongs to a network interface of its own, so it stays when the machine is replaced, and with
    it every openquake.cfg. The old machine goes first: address and volumes can be with one machine only.
    """

    instance_id: pulumi.Output[str]
    user_data: pulumi.Output[str]
    attachments: list[aws.ec2.VolumeAttachment]

    def __init__(self, name: str, args: MasterArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        role = self._role(name, args)
        interface = aws.ec2.NetworkInterface(
            self.named("interface"),
            subnet_id=args.subnet_id,
            private_ips=[str(args.address)],
            security_groups=[args.security_group_id],
            description="The fixed address of the master",
            tags=self.tags("interface"),
            opts=self.child(delete_before_replace=True),
        )
        self.user_data = self._user_data(args)
        instance = self._instance(args, role, interface)
        self.instance_id = instance.id
        self.attachments = [
            aws.ec2.VolumeAttachment(
                self.named(volume_name(mount)),
                instance_id=instance.id,
                volume_id=volume_id,
                device_name=device,
                # A mounted volume never detaches from a running machine: destroy would hang.
                stop_instance_before_detaching=True,
                opts=self.child(delete_before_replace=True),
            )
            for (mount, volume_id), device in zip(args.volume_ids.items(), _DEVICES, strict=True)
        ]
        self.register_outputs({"instanceId": self.instance_id, "address": str(args.address)})

    def _role(self, name: str, args: MasterArgs) -> NodeRole:
        """What the master may ask of AWS."""
        return NodeRole(
            name,
            NodeRoleArgs(
                statements=[
                    args.secrets.cluster.keeper(),
                    *([args.secrets.webui.keeper()] if args.secrets.webui else []),
                    *([reading(args.certificate_secret)] if args.certificate_secret else []),
                    *args.secrets.key_keeper,
                    *args.bundle.key_reader,
                    {
                        "Effect": "Allow",
                        "Action": ["s3:GetObject"],
                        "Resource": pulumi.Output.concat(args.bundle.bucket_arn, "/", args.bundle.key),
                    },
                    {
                        "Effect": "Allow",
                        "Action": ["cloudwatch:PutMetricData"],
                        "Resource": "*",  # metrics have no ARN
                        "Condition": {"StringEquals": {"cloudwatch:namespace": facts.METRICS_NAMESPACE}},
                    },
                    # Why the group of workers starts none; AWS lets nobody restrict these to one group.
                    {"Effect": "Allow", "Action": list(_GROUP_ACTIONS), "Resource": "*"},
                    {"Effect": "Allow", "Action": list(_AGENT_ACTIONS), "Resource": "*"},
                ],
            ),
            opts=self.child(),
        )

    def _instance(
        self, args: MasterArgs, role: NodeRole, interface: aws.ec2.NetworkInterface
    ) -> aws.ec2.Instance:
        return aws.ec2.Instance(
            self.named("instance"),
            ami=args.image.apply(lambda image: image.id),
            instance_type=args.instance_type,
            primary_network_interface=aws.ec2.InstancePrimaryNetworkInterfaceArgs(
                network_interface_id=interface.id
            ),
            iam_instance_profile=role.profile_name,
            metadata_options=aws.ec2.InstanceMetadataOptionsArgs(
                http_endpoint="enabled",
                http_tokens="required",
                http_put_response_hop_limit=1,
                instance_metadata_tags="enabled",  # the master reads three of its tags there
            ),
            root_block_device=aws.ec2.InstanceRootBlockDeviceArgs(
                volume_type="gp3",
                volume_size=args.image.apply(lambda image: max(facts.MASTER_ROOT_GB, image.root_gb)),
                encrypted=True,
                kms_key_id=args.key or None,
                delete_on_termination=True,
                tags=self.tags("root"),  # not volume_tags, which would fight over the data volumes' own tags
            ),
            monitoring=True,  # metrics by the minute: at five minutes a job that fills the memory is over first
            ebs_optimized=True,  # so is every Nitro type anyway; said for who audits the program
            user_data_base64=self.user_data,
            user_data_replace_on_change=True,
            tags={
                **self.tags("instance"),
                facts.NUM_CORES_TAG: str(args.fleet_processes),
                facts.STOP_WHEN_IDLE_TAG: str(args.stop_when_idle_minutes),
                **({facts.PROCESS_HOUR_TAG: args.process_hour} if args.process_hour else {}),
            },
            opts=self.child(
                delete_before_replace=True,
                depends_on=[*role.policies, *args.after],
            ),
        )

    def _user_data(self, args: MasterArgs) -> pulumi.Output[str]:
        def render(known: Mapping[str, Any]) -> str:
            return userdata.user_data(
                userdata.MasterNode(
                    region=args.region,
                    architecture=args.architecture,
                    master_address=str(args.address),
                    webui=args.webui,
                    webui_login=args.webui_login,
                    webui_certificate=args.webui_certificate,
                    bundle_key=args.bundle.key,
                    bundle_sha256=args.bundle.sha256,
                    nfs_addresses={zone: str(address) for zone, address in args.nfs_addresses.items()},
                    cluster=cluster_name(pulumi.get_stack()),
                    stack=pulumi.get_stack(),
                    **known,
                )
            )

        return pulumi.Output.all(
            secret_id=args.secrets.cluster.arn,
            webui_secret_id=args.secrets.webui.arn if args.secrets.webui else "",
            bundle_bucket=args.bundle.bucket,
            file_system_id=args.file_system_id,
            volumes=pulumi.Output.all(**args.volume_ids),
        ).apply(render)
