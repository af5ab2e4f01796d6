"""Who may talk to whom: one security group for each kind of party, and every rule a resource of its own.

Security groups do not filter the VPC's resolver, its time server and the instance metadata, so no rule names
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

import pulumi
import pulumi_aws as aws

from components import facts
from components.component import Component
from components.settings import Egress

_Ingress = aws.vpc.SecurityGroupIngressRule
_Egress = aws.vpc.SecurityGroupEgressRule


@dataclass(frozen=True)
class SecurityArgs:
    """What the rules depend on. `client_cidrs` are the networks that may reach the WebUI, if there is one."""

    vpc_id: pulumi.Input[str]
    s3_prefix_list_id: pulumi.Input[str]
    egress: Egress
    webui: bool
    client_cidrs: Sequence[IPv4Network]


class Security(Component):
    """The security groups of master, workers, NFS mount targets and interface endpoints, and their rules."""

    master: aws.ec2.SecurityGroup
    workers: aws.ec2.SecurityGroup
    nfs: aws.ec2.SecurityGroup
    endpoints: aws.ec2.SecurityGroup

    def __init__(self, name: str, args: SecurityArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        self.master = self._group("master", "The OpenQuake master", args.vpc_id)
        self.workers = self._group("workers", "The OpenQuake workers", args.vpc_id)
        self.nfs = self._group("nfs", "The mount targets of the shared file system", args.vpc_id)
        self.endpoints = self._group("endpoints", "The endpoints of AWS services", args.vpc_id)

        self._connect("workers-master-amqp", self.workers, self.master, facts.AMQP_PORT, "RabbitMQ")
        self._connect("workers-master-dbserver", self.workers, self.master, facts.DBSERVER_PORT, "DbServer")
        self._connect("workers-nfs", self.workers, self.nfs, facts.NFS_PORT, "NFS")
        self._connect("workers-endpoints", self.workers, self.endpoints, facts.HTTPS_PORT, "AWS services")
        self._connect("master-nfs", self.master, self.nfs, facts.NFS_PORT, "NFS")
        # With a NAT gateway too, since private DNS sends the whole VPC to the endpoints that exist.
        self._connect("master-endpoints", self.master, self.endpoints, facts.HTTPS_PORT, "AWS services")
        if args.webui:
            for cidr in map(str, args.client_cidrs):
                child = f"clients-{cidr.replace('/', '-')}"
                self._allow(_Ingress, child, self.master, facts.WEBUI_PORT, "WebUI", cidr=cidr)
        if args.egress == "nat":
            for port, use in (
                (facts.HTTP_PORT, "Debian packages"),
                (facts.HTTPS_PORT, "Python packages, AWS"),
            ):
                self._allow(_Egress, f"master-internet-{port}", self.master, port, use, cidr="0.0.0.0/0")
        else:
            s3 = args.s3_prefix_list_id
            self._allow(_Egress, "master-s3", self.master, facts.HTTPS_PORT, "S3", prefix_list_id=s3)
        self.register_outputs(
            {
                "masterGroupId": self.master.id,
                "workersGroupId": self.workers.id,
                "nfsGroupId": self.nfs.id,
                "endpointsGroupId": self.endpoints.id,
            }
        )

    def _group(self, child: str, description: str, vpc_id: pulumi.Input[str]) -> aws.ec2.SecurityGroup:
        """A group without rules: the provider removes the "everything may leave" that AWS puts into a new
        one.
        """
        return aws.ec2.SecurityGroup(
            self.named(child),
            description=description,
            vpc_id=vpc_id,
            tags=self.tags(child),
            opts=self.child(),
        )

    def _connect(
        self,
        child: str,
        source: aws.ec2.SecurityGroup,
        target: aws.ec2.SecurityGroup,
        port: int,
        description: str,
    ) -> None:
        """Let `source` out to a TCP port of `target`, and let it in there."""
        self._allow(_Egress, f"{child}-out", source, port, description, group_id=target.id)
        self._allow(_Ingress, f"{child}-in", target, port, description, group_id=source.id)

    def _allow(
        self,
        direction: type[_Ingress] | type[_Egress],
        child: str,
        group: aws.ec2.SecurityGroup,
        port: int,
        description: str,
        *,
        group_id: pulumi.Input[str] | None = None,
        cidr: str | None = None,
        prefix_list_id: pulumi.Input[str] | None = None,
    ) -> None:
        """One rule of `group` for one TCP port; one of the last three names the other end."""
        direction(
            self.named(child),
            security_group_id=group.id,
            referenced_security_group_id=group_id,
            cidr_ipv4=cidr,
            prefix_list_id=prefix_list_id,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            description=description,
            tags=self.tags(child),
            opts=self.child(),
        )
