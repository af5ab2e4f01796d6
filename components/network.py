"""The private network: subnets, the ways out of them, and the AWS services reached from inside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Any

import pulumi
import pulumi_aws as aws

from components import facts
from components.component import Component
from components.roles import document
from components.settings import Egress
from components.subnets import Subnets, endpoint_services


@dataclass(frozen=True)
class NetworkArgs:
    """What the network is made from. `readable_buckets` are the ARNs of the buckets that nodes have to read. `key` is
    the ARN of the key with which the cluster is encrypted, "" for AWS's own; placement.py finds it again.
    """

    region: str
    vpc_cidr: IPv4Network
    subnets: Subnets
    egress: Egress
    master_zone: str
    readable_buckets: Sequence[pulumi.Input[str]]
    key: str


class Network(Component):
    """A VPC with a private subnet for the master and, in every zone, one for the workers.

    No node has a public address. The master's subnet gets out through one NAT gateway, or not at all; the
    workers' subnets have no route out of the VPC in either mode.
    """

    vpc_id: pulumi.Output[str]
    account: pulumi.Output[str]
    master_subnet_id: pulumi.Output[str]
    master_route_table_id: pulumi.Output[str]
    worker_subnet_ids: Mapping[str, pulumi.Output[str]]
    s3_prefix_list_id: pulumi.Output[str]

    def __init__(self, name: str, args: NetworkArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        vpc = aws.ec2.Vpc(
            self.named("vpc"),
            cidr_block=str(args.vpc_cidr),
            enable_dns_support=True,
            enable_dns_hostnames=True,  # private DNS of the interface endpoints needs both
            tags={**self.tags("vpc"), **({facts.KEY_TAG: args.key} if args.key else {})},
            opts=self.child(),
        )
        self.vpc_id = vpc.id
        self.account = vpc.arn.apply(lambda arn: arn.split(":")[4])  # arn:aws:ec2:REGION:ACCOUNT:vpc/…
        # Without rules of its own, whatever lands in the default group by mistake reaches nothing.
        aws.ec2.DefaultSecurityGroup(
            self.named("default"),
            vpc_id=vpc.id,
            ingress=[],
            egress=[],
            tags=self.tags("default"),
            opts=self.child(),
        )

        self.master_subnet_id = self._subnet("master", args.subnets.master, args.master_zone).id
        master_routes = self._route_table("master", [self.master_subnet_id])
        self.master_route_table_id = master_routes.id
        self.worker_subnet_ids = {
            zone: self._subnet(f"workers-{zone}", cidr, zone).id
            for zone, cidr in args.subnets.workers.items()
        }
        self._route_table("workers", list(self.worker_subnet_ids.values()))
        if args.egress == "nat":
            self._way_out(master_routes, args.subnets.public, args.master_zone)
        s3 = self._s3_endpoint(args, master_routes)
        self.s3_prefix_list_id = s3.prefix_list_id
        self.register_outputs(
            {
                "vpcId": self.vpc_id,
                "masterSubnetId": self.master_subnet_id,
                "masterRouteTableId": self.master_route_table_id,
                "workerSubnetIds": dict(self.worker_subnet_ids),
            }
        )

    def _subnet(self, child: str, cidr: IPv4Network, zone: str) -> aws.ec2.Subnet:
        return aws.ec2.Subnet(
            self.named(child),
            vpc_id=self.vpc_id,
            cidr_block=str(cidr),
            availability_zone=zone,
            map_public_ip_on_launch=False,
            tags=self.tags(child),
            opts=self.child(),
        )

    def _route_table(self, child: str, subnet_ids: Sequence[pulumi.Input[str]]) -> aws.ec2.RouteTable:
        """A route table, holding nothing but the VPC's own route, for these subnets."""
        table = aws.ec2.RouteTable(
            self.named(child), vpc_id=self.vpc_id, tags=self.tags(child), opts=self.child()
        )
        for number, subnet_id in enumerate(subnet_ids):
            aws.ec2.RouteTableAssociation(
                self.named(f"{child}-{number}"),
                route_table_id=table.id,
                subnet_id=subnet_id,
                opts=self.child(),
            )
        return table

    def _way_out(self, routes: aws.ec2.RouteTable, public_cidr: IPv4Network, zone: str) -> None:
        """A NAT gateway, alone in a public subnet of the master's zone, for `routes`."""
        gateway = aws.ec2.InternetGateway(
            self.named("internet"), vpc_id=self.vpc_id, tags=self.tags("internet"), opts=self.child()
        )
        public = self._subnet("public", public_cidr, zone)
        public_routes = self._route_table("public", [public.id])
        way_out = aws.ec2.Route(
            self.named("public-internet"),
            route_table_id=public_routes.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=gateway.id,
            opts=self.child(),
        )
        address = aws.ec2.Eip(
            self.named("nat"), domain="vpc", tags=self.tags("nat"), opts=self.child(depends_on=[gateway])
        )
        nat = aws.ec2.NatGateway(
            self.named("nat"),
            subnet_id=public.id,
            allocation_id=address.id,
            tags=self.tags("nat"),
            opts=self.child(depends_on=[way_out]),
        )
        aws.ec2.Route(
            self.named("master-nat"),
            route_table_id=routes.id,
            destination_cidr_block="0.0.0.0/0",
            nat_gateway_id=nat.id,
            opts=self.child(),
        )

    def _s3_endpoint(self, args: NetworkArgs, routes: aws.ec2.RouteTable) -> aws.ec2.VpcEndpoint:
        """The way to S3 that costs nothing, for the master alone, since workers use no S3.

        Without another way out it lets through what nodes have to read and nothing else. With a NAT gateway the
        buckets of other regions are reached anyway, so it stands in the way of nobody's own data in this one.
        """
        if args.egress == "nat":
            statement: dict[str, Any] = {"Sid": "AsThroughTheNatGateway", "Action": "*", "Resource": "*"}
        else:
            readable = [pulumi.Output.concat(bucket, "/*") for bucket in args.readable_buckets]
            statement = {"Sid": "ReadWhatNodesNeed", "Action": "s3:GetObject", "Resource": readable}
        return aws.ec2.VpcEndpoint(
            self.named("s3"),
            vpc_id=self.vpc_id,
            service_name=f"com.amazonaws.{args.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[routes.id],
            policy=document({"Effect": "Allow", "Principal": "*", **statement}),
            tags=self.tags("s3"),
            opts=self.child(),
        )


@dataclass(frozen=True)
class EndpointsArgs:
    """Where the interface endpoints go, the security group that guards them, and the account that may use them."""

    account: pulumi.Input[str]
    region: str
    egress: Egress
    subnets: Subnets
    vpc_id: pulumi.Input[str]
    subnet_id: pulumi.Input[str]
    security_group_id: pulumi.Input[str]


class Endpoints(Component):
    """The interface endpoints of the AWS services that nodes use, under the services' usual names.

    They stand in the master's subnet only: a cluster whose master's zone is down computes nothing anyway, and
    a second zone would double their price. Their addresses are fixed, so that none of them takes the
    master's. They let through what identities of this account ask for, so that nobody carries data out of the
    cluster with credentials of another account.
    """

    def __init__(self, name: str, args: EndpointsArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-keys.html
        policy = document(
            {
                "Sid": "OnlyThisAccount",
                "Effect": "Allow",
                "Principal": "*",
                "Action": "*",
                "Resource": "*",
                "Condition": {"StringEquals": {"aws:PrincipalAccount": args.account}},
            }
        )
        for service, place in endpoint_services(args.egress).items():
            aws.ec2.VpcEndpoint(
                self.named(service),
                vpc_id=args.vpc_id,
                service_name=f"com.amazonaws.{args.region}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=[args.subnet_id],
                subnet_configurations=[
                    aws.ec2.VpcEndpointSubnetConfigurationArgs(
                        subnet_id=args.subnet_id, ipv4=str(args.subnets.endpoint_address(place))
                    )
                ],
                security_group_ids=[args.security_group_id],
                policy=policy,
                tags=self.tags(service),
                # Neither its address nor its service's name can be with two endpoints at a time.
                opts=self.child(delete_before_replace=True),
            )
        self.register_outputs({"services": list(endpoint_services(args.egress))})
