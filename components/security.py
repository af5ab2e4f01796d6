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
            for cidr in args.client_cidrs:
                self._clients_to_webui(cidr)
        if args.egress == "nat":
            self._master_to_internet(facts.HTTP_PORT, "Debian's archive")
            self._master_to_internet(facts.HTTPS_PORT, "Python packages and AWS")
        else:
            self._master_to_s3(args.s3_prefix_list_id)
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
        aws.vpc.SecurityGroupEgressRule(
            self.named(f"{child}-out"),
            security_group_id=source.id,
            referenced_security_group_id=target.id,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            description=description,
            tags=self.tags(f"{child}-out"),
            opts=self.child(),
        )
        aws.vpc.SecurityGroupIngressRule(
            self.named(f"{child}-in"),
            security_group_id=target.id,
            referenced_security_group_id=source.id,
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            description=description,
            tags=self.tags(f"{child}-in"),
            opts=self.child(),
        )

    def _clients_to_webui(self, cidr: IPv4Network) -> None:
        child = f"clients-{str(cidr).replace('/', '-')}"
        aws.vpc.SecurityGroupIngressRule(
            self.named(child),
            security_group_id=self.master.id,
            cidr_ipv4=str(cidr),
            ip_protocol="tcp",
            from_port=facts.WEBUI_PORT,
            to_port=facts.WEBUI_PORT,
            description="WebUI",
            tags=self.tags(child),
            opts=self.child(),
        )

    def _master_to_internet(self, port: int, description: str) -> None:
        child = f"master-internet-{port}"
        aws.vpc.SecurityGroupEgressRule(
            self.named(child),
            security_group_id=self.master.id,
            cidr_ipv4="0.0.0.0/0",
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            description=description,
            tags=self.tags(child),
            opts=self.child(),
        )

    def _master_to_s3(self, prefix_list_id: pulumi.Input[str]) -> None:
        aws.vpc.SecurityGroupEgressRule(
            self.named("master-s3"),
            security_group_id=self.master.id,
            prefix_list_id=prefix_list_id,
            ip_protocol="tcp",
            from_port=facts.HTTPS_PORT,
            to_port=facts.HTTPS_PORT,
            description="S3 through its gateway endpoint",
            tags=self.tags("master-s3"),
            opts=self.child(),
        )
