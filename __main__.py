"""An OpenQuake cluster on AWS: `pulumi up` makes it, `pulumi destroy` takes it away and keeps its data."""

from __future__ import annotations

from pathlib import Path

import pulumi

from components import facts
from components.alarms import Alarms, AlarmsArgs
from components.budget import Budget, BudgetArgs
from components.bundle import BundleStore, BundleStoreArgs, engine_bundle
from components.dashboard import Dashboard, DashboardArgs, hour_prices
from components.image import NodeImage, NodeImageArgs
from components.instance_types import fleet_processes, least_processes
from components.keys import grant_command
from components.lookups import look_up, read_settings
from components.master import Master, MasterArgs
from components.network import Endpoints, EndpointsArgs, Network, NetworkArgs
from components.prices import estimate, process_hour
from components.readiness import Readiness, ReadinessArgs
from components.scaling import Scaling, ScalingArgs
from components.secrets import Secrets, SecretsArgs
from components.security import Security, SecurityArgs
from components.snapshots import Snapshots, SnapshotsArgs
from components.storage import Storage, StorageArgs, take_data_back
from components.subnets import share_out
from components.tags import ACTIVATE_COST_TAG, dashboard_name
from components.workers import WARMUP_SECONDS, Workers, WorkersArgs

# --- what is asked for, and where ---
settings = read_settings()
region = look_up(settings)
subnets = share_out(settings.vpc_cidr, region.zones)
master_zone = region.zones[0]
reserved_mb = facts.RESERVED_MB[settings.worker_storage]
processes = fleet_processes(settings.worker_max, region.worker_types, reserved_mb)
costs = estimate(settings, region.name)
price = process_hour(costs.worker, region.worker_types[0], reserved_mb)

# --- the engine's sources and the cluster's secrets ---
bundle = BundleStore(
    "engine", BundleStoreArgs(engine_bundle(Path(__file__).parent / "engine"), region.name, region.key)
)
secrets = Secrets("secrets", SecretsArgs(webui=settings.webui, region=region.name, key=region.key))

# --- the private network and who may talk to whom in it ---
network = Network(
    "network",
    NetworkArgs(
        region=region.name,
        vpc_cidr=settings.vpc_cidr,
        subnets=subnets,
        egress=settings.egress,
        master_zone=master_zone,
        # AWS publishes the SSM agent's package in a bucket of its own in every region.
        readable_buckets=[bundle.bucket_arn, f"arn:aws:s3:::amazon-ssm-{region.name}"],
        key=region.key,
    ),
)
security = Security(
    "security",
    SecurityArgs(
        vpc_id=network.vpc_id,
        s3_prefix_list_id=network.s3_prefix_list_id,
        egress=settings.egress,
        webui=settings.webui,
        client_cidrs=settings.client_cidrs,
    ),
)
endpoints = Endpoints(
    "endpoints",
    EndpointsArgs(
        account=network.account,
        region=region.name,
        egress=settings.egress,
        subnets=subnets,
        vpc_id=network.vpc_id,
        subnet_id=network.master_subnet_id,
        security_group_id=security.endpoints.id,
    ),
)

# --- what outlives the machines ---
snapshots = (
    Snapshots("snapshots", SnapshotsArgs(settings.backup_days, region.key, network.account, region.name))
    if settings.backup_days
    else None
)
storage = Storage(
    "storage",
    StorageArgs(
        master_zone=master_zone,
        volume_gb=settings.volume_gb,
        volume_sources=settings.volume_sources,
        volume_tags=snapshots.volume_tags if snapshots else {},
        file_system_id=settings.file_system_id,
        key=region.key,
        back_up=bool(settings.backup_days),
        nfs_addresses=subnets.nfs_addresses,
        worker_subnet_ids=network.worker_subnet_ids,
        nfs_group_id=security.nfs.id,
        keep=settings.keep_data_on_destroy,
    ),
)

# --- the machines ---
image = NodeImage(
    "image",
    NodeImageArgs(image=region.image, named=bool(settings.ami_id), architecture=settings.architecture),
).image
surroundings = [network, security, endpoints, storage, bundle]
master = Master(
    "master",
    MasterArgs(
        region=region.name,
        architecture=settings.architecture,
        instance_type=settings.master_instance_type,
        image=image,
        webui=settings.webui,
        webui_login=settings.webui_login,
        webui_certificate=settings.webui_certificate,
        certificate_secret=settings.certificate_secret,
        address=subnets.master_address,
        subnet_id=network.master_subnet_id,
        security_group_id=security.master.id,
        volume_ids=storage.volume_ids,
        nfs_addresses=subnets.nfs_addresses,
        file_system_id=storage.file_system_id,
        fleet_processes=processes,
        stop_when_idle_minutes=settings.stop_when_idle_minutes,
        process_hour="" if price is None else f"{price:.6f}",
        secrets=secrets,
        bundle=bundle,
        key=region.key,
        after=surroundings,
    ),
)
workers = Workers(
    "workers",
    WorkersArgs(
        region=region.name,
        architecture=settings.architecture,
        instance_types=settings.worker_instance_types,
        image=image,
        minimum=settings.worker_min,
        desired=settings.worker_desired,
        maximum=settings.worker_max,
        spot=settings.worker_spot,
        on_demand_base=settings.worker_on_demand_base,
        storage=settings.worker_storage,
        drain_minutes=settings.drain_minutes,
        subnet_ids=list(network.worker_subnet_ids.values()),
        security_group_id=security.workers.id,
        master_address=subnets.master_address,
        nfs_addresses=subnets.nfs_addresses,
        file_system_id=storage.file_system_id,
        bundle_sha256=bundle.sha256,
        secrets=secrets,
        key=region.key,
        after=surroundings,
    ),
)
alarms: list[pulumi.Output[str]] = []
if settings.worker_min < settings.worker_max:
    scaling = Scaling(
        "scaling",
        ScalingArgs(
            group_name=workers.group_name,
            minimum=settings.worker_min,
            maximum=settings.worker_max,
            processes=least_processes(region.worker_types, reserved_mb),
            warmup_seconds=WARMUP_SECONDS,
        ),
    )
    alarms += scaling.alarm_arns
if settings.monthly_budget:
    Budget("budget", BudgetArgs(usd=settings.monthly_budget, email=settings.alarm_email))
ready: list[pulumi.Resource] = []
if settings.wait_for_ready:
    readiness = Readiness(
        "readiness",
        ReadinessArgs(
            region=region.name,
            instance_id=master.instance_id,
            instance_type=settings.master_instance_type,
            user_data=master.user_data,
            minutes=settings.ready_timeout_minutes,
            after=master.attachments,
        ),
    )
    ready = [readiness]
if settings.alarm_email:
    told = Alarms(
        "alarms",
        AlarmsArgs(
            email=settings.alarm_email,
            volume_sources=settings.volume_sources,
            account=network.account,
            region=region.name,
            instance_id=master.instance_id,
            stops_itself=settings.stop_when_idle_minutes > 0,
            group_name=workers.group_name,
            after=ready,
        ),
    )
    alarms += told.arns
Dashboard(
    "dashboard",
    DashboardArgs(
        region=region.name,
        instance_id=master.instance_id,
        group_name=workers.group_name,
        file_system_id=storage.file_system_id,
        alarms=alarms,
        prices=hour_prices(costs),
    ),
)

# --- what a user needs to know ---
session = pulumi.Output.concat(
    "aws ssm start-session --region ", region.name, " --target ", master.instance_id
)
pulumi.export("region", region.name)
pulumi.export("vpcId", network.vpc_id)
pulumi.export("masterRouteTableId", network.master_route_table_id)
pulumi.export("masterAddress", str(subnets.master_address))
pulumi.export("masterInstanceId", master.instance_id)
pulumi.export("shellCommand", session)
if settings.webui:
    ports = f"portNumber={facts.WEBUI_PORT},localPortNumber={facts.WEBUI_PORT}"
    forward = f" --document-name AWS-StartPortForwardingSession --parameters {ports}"
    scheme = "https" if settings.webui_certificate else "http"
    pulumi.export("webUiUrl", f"{scheme}://{subnets.master_address}:{facts.WEBUI_PORT}")
    pulumi.export("webUiPortForward", pulumi.Output.concat(session, forward))
if secrets.webui and settings.webui_login:
    shown = " --query SecretString --output text | python3 -c "
    shown += "\"import json, sys; print(json.load(sys.stdin)['admin_password'])\""
    asked = "aws secretsmanager get-secret-value --region "
    command = pulumi.Output.concat(asked, region.name, " --secret-id ", secrets.webui.name, shown)
    pulumi.export("webUiPasswordCommand", command)
pulumi.export(
    "dashboardUrl",
    f"https://{region.name}.console.aws.amazon.com/cloudwatch/home?region={region.name}"
    f"#dashboards/dashboard/{dashboard_name(pulumi.get_stack())}",
)
pulumi.export("costPerMonthIdle", costs.idle_text())
pulumi.export("costPerHourFull", costs.full_text())
if settings.monthly_budget:
    pulumi.export("activateCostTagCommand", ACTIVATE_COST_TAG)
pulumi.export("volumeIds", dict(storage.volume_ids))
pulumi.export("efsId", storage.file_system_id)
if settings.keep_data_on_destroy:
    pulumi.export(
        "takeDataBack", take_data_back(region.name, region.zones, storage.volume_ids, storage.file_system_id)
    )
pulumi.export("workerGroupName", workers.group_name)
if region.key:
    pulumi.export(
        "workerKeyGrantCommand",
        network.account.apply(lambda account: grant_command(region.key, region.name, account)),
    )
pulumi.export("secretName", secrets.cluster.name)
