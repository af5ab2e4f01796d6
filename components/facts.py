"""The facts that more than one place needs, each written once.

Ports, paths, names and limits that the Pulumi program, the user data, the nodes' scripts and the lab have to agree
on. Nothing here computes and nothing here imports Pulumi.
"""

from __future__ import annotations

from typing import Final

PROJECT: Final = "openquake-cluster"

# --- ports: the master's three, and what the nodes themselves need to reach -------------------------------------------
AMQP_PORT: Final = 5672
DBSERVER_PORT: Final = 1999
WEBUI_PORT: Final = 8800
NFS_PORT: Final = 2049
HTTPS_PORT: Final = 443
HTTP_PORT: Final = 80

# --- users: ids are pinned because data volumes and NFS outlive the images that created the users ---------------------
OPENQUAKE_USER: Final = "openquake"
OPENQUAKE_ID: Final = 600
RABBITMQ_USER: Final = "rabbitmq"
RABBITMQ_ID: Final = 601

# --- paths on every node ----------------------------------------------------------------------------------------------
OPENQUAKE_CFG: Final = "/etc/openquake/openquake.cfg"
NFS_DIR: Final = "/srv/openquake"
SHARED_DIR: Final = f"{NFS_DIR}/oqdata"
ENGINE_IMAGE_DIR: Final = f"{NFS_DIR}/engine"
LOGS_DIR: Final = f"{NFS_DIR}/logs"  # of workers, which outlive them
BAKED_ENGINE_DIR: Final = "/usr/share/openquake"  # in a machine image that has everything baked in
ENGINE_DIR: Final = "/opt/openquake"
DBSERVER_DIR: Final = "/var/lib/openquake"
RABBITMQ_DIR: Final = "/var/lib/rabbitmq"
CUSTOM_TMP: Final = "/var/tmp/openquake"  # noqa: S108 - scratch of the engine, sticky like /tmp
WEBUI_SOCKET: Final = "/run/openquake-webui/socket"  # from nginx to gunicorn
WEBUI_ALIVE: Final = "/alive"  # the address that says that gunicorn answers, as oq_webui.alive has it
WEBUI_SECRETS: Final = "/etc/openquake/webui.json"  # root's, handed to the WebUI alone
# HTTPS: what openquake-certificate.service prepares. The names in the directory are oq_webui.certificate's.
WEBUI_TLS_DIR: Final = "/etc/openquake/tls"
WEBUI_PAIR: Final = f"{WEBUI_TLS_DIR}/pair.pem"  # certificates and private key: root's, handed to nginx alone
WEBUI_CERTIFICATE: Final = f"{WEBUI_TLS_DIR}/certificate.pem"  # public; oq-cluster reads it by Run Command
# A certificate that the master has made outlives it: on the volume of /var, below a directory that is root's.
WEBUI_KEPT_PAIR: Final = "/var/opt/openquake/pair.pem"
ENVIRONMENT_FILE: Final = "/etc/default/openquake"  # of everything that runs the engine
NODE_PROGRAM: Final = "/usr/local/sbin/oq-node"
ROTATION: Final = "/etc/openquake/rotation.json"  # is there while a rotation of the secrets is not over
BOOTSTRAP_DONE: Final = "/etc/openquake/bootstrap-done"  # is there once a machine has become a node

# Where the master's three data volumes are mounted (OpenQuake's cluster manual: partitions of their own).
HOME_MOUNT: Final = "/home"
VAR_MOUNT: Final = "/var"
VOLUME_MOUNTS: Final = (HOME_MOUNT, VAR_MOUNT, RABBITMQ_DIR)

# udev's name for an EBS volume on a Nitro instance is this prefix and the volume id without its dash: the NVMe serial.
# https://docs.aws.amazon.com/ebs/latest/userguide/identify-nvme-ebs-device.html
EBS_DEVICE_PREFIX: Final = "/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_"
MASTER_ROOT_GB: Final = 20  # the image, the packages, and the engine while it is being built

# rsize and wsize of the shared file system, in bytes: the most that NFS takes, and AWS's advice.
# https://docs.aws.amazon.com/efs/latest/ug/mounting-fs-nfs-mount-settings.html
NFS_BLOCK: Final = 1024**2

# --- systemd units ----------------------------------------------------------------------------------------------------
RABBITMQ_UNIT: Final = "rabbitmq-server.service"
DBSERVER_UNIT: Final = "openquake-dbserver.service"
WEBUI_UNIT: Final = "openquake-webui.service"
NGINX_UNIT: Final = "openquake-nginx.service"  # in front of it
CERTIFICATE_UNIT: Final = "openquake-certificate.service"  # before both, where port 8800 speaks HTTPS
CERTIFICATE_RENEWAL_SERVICE: Final = "openquake-certificate-renewal.service"
CERTIFICATE_RENEWAL_TIMER: Final = "openquake-certificate-renewal.timer"
BOOTSTRAP_UNIT: Final = "openquake-bootstrap.service"
MOUNTS_UNIT: Final = "openquake-mounts.service"
CELERY_UNIT: Final = "openquake-celery.service"
METRICS_UNIT: Final = "openquake-metrics.service"
FLEET_UNIT: Final = "openquake-fleet.service"
REFRESH_SERVICE: Final = "openquake-refresh.service"
REFRESH_TIMER: Final = "openquake-refresh.timer"
REAP_SERVICE: Final = "openquake-reap.service"
REAP_TIMER: Final = "openquake-reap.timer"
DRAIN_UNIT: Final = "openquake-drain.service"
JOURNAL_UNIT: Final = "openquake-journal.service"

# What the nodes say in the journal, by identifier.
NODE_LOG: Final = "oq-node"
VOLUMES_LOG: Final = "openquake-volumes"

# --- RabbitMQ and Celery ----------------------------------------------------------------------------------------------
AMQP_USER: Final = "openquake"
AMQP_VHOST: Final = "openquake"
CELERY_QUEUE: Final = "celery"  # the name in OpenQuake's cluster manual
# OpenQuake's hardware advice is 2 GB of memory per core, so a worker starts no
# more processes than that.
MEMORY_PER_PROCESS_MB: Final = 2048
# Memory of a worker, in MiB, that is not for its processes, by `workerStorage`: a diskless one has its directories in
# it, so a process less where memory sets their number.
RESERVED_MB: Final = {"nfs": 0, "diskless": 2048}

# --- the fleet ---
METRICS_NAMESPACE: Final = "OpenQuake"  # of CloudWatch
METRICS_DIMENSION: Final = "Cluster"
METRICS: Final = (
    "TasksWaiting",
    "TasksOutstanding",
    "TasksWithoutWorker",
    "TasksDone",
    "WorkersAlive",
    "WorkersBusy",
    "BacklogPerWorker",
    "BrokerBlocked",
    "CalculationsFailed",
    "MemoryUsedPercent",
)
DISK_METRIC: Final = "DiskUsedPercent"  # one for each of VOLUME_MOUNTS
DISK_DIMENSION: Final = "Disk"
METRICS_SECONDS: Final = 10  # between two publications while there is work
METRICS_IDLE_SECONDS: Final = 60  # and without
# The tag of the master's instance that says what num_cores of its openquake.cfg has to be. A tag can change and the
# machine see it, where a change of the user data would replace the machine. Metadata show no key with / or a space:
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/work-with-tags-in-IMDS.html
NUM_CORES_TAG: Final = "NumCores"
STOP_WHEN_IDLE_TAG: Final = "StopWhenIdleMinutes"  # and the one that says when it stops itself, 0 for never
# And the one with what an hour of a worker's process costs, in USD; not there where that is not known. The engine's
# programs have it in their environment, under PROCESS_HOUR_VARIABLE.
PROCESS_HOUR_TAG: Final = "ProcessHourUsd"
PROCESS_HOUR_VARIABLE: Final = "OQ_CELERY_PROCESS_HOUR_USD"
# The tag by which the policy of the daily snapshots finds the volumes, and its role the snapshots that it may delete.
SNAPSHOTS_TAG: Final = "SnapshotsBy"
# The tag of the VPC with the ARN of the customer's key that the cluster has been made with; not there without one.
KEY_TAG: Final = "EncryptionKey"
REFRESH_SECONDS: Final = 60  # between two looks of the master at these tags
REAP_SECONDS: Final = 60  # and at whether the processes of all calculations are there
DRAIN_HOOK: Final = "openquake-drain"  # the Auto Scaling group's lifecycle hook
DRAIN_POLL_SECONDS: Final = 5  # between two looks of a worker at whether it has to go
DRAINING_FLAG: Final = "/run/openquake/draining"  # a file that is there while a worker goes
HAND_OVER_SECONDS: Final = 15  # what giving unfinished tasks back may take
LOG_DAYS: Final = 14  # for which the log of a worker stays after its end

# --- user data --------------------------------------------------------------------------------------------------------
# AWS refuses more than 16 KB before base64: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/user-data.html
USER_DATA_LIMIT: Final = 16 * 1024
