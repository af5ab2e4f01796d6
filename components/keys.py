"""The customer's own KMS key: what roles need to use it, and what EC2 Auto Scaling does. No Pulumi in here.

The key's policy has to let the account's roles be given rights by IAM, as KMS's default policy does.
"""

from __future__ import annotations

from typing import Any, Final

# https://docs.aws.amazon.com/autoscaling/ec2/userguide/key-policy-requirements-EBS-encryption.html
_GRANTED: Final = (
    "Encrypt",
    "Decrypt",
    "ReEncryptFrom",
    "ReEncryptTo",
    "GenerateDataKey",
    "GenerateDataKeyWithoutPlaintext",
    "DescribeKey",
    "CreateGrant",
)
# https://docs.aws.amazon.com/ebs/latest/userguide/dlm-prerequisites.html
_SNAPSHOTS: Final = (
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:Encrypt",
    "kms:GenerateDataKey",
    "kms:GenerateDataKeyWithoutPlaintext",
    "kms:ReEncryptFrom",
    "kms:ReEncryptTo",
)


def rights(key: str, service: str, *actions: str) -> list[dict[str, Any]]:
    """The IAM statements by which a role uses a key (an ARN, "" for none) through one service of AWS alone."""
    if not key:
        return []
    condition = {"StringEquals": {"kms:ViaService": service}}
    return [{"Effect": "Allow", "Action": list(actions), "Resource": key, "Condition": condition}]


def snapshot_rights(key: str) -> list[dict[str, Any]]:
    """The IAM statements by which Data Lifecycle Manager makes snapshots of volumes with this key ("" for none)."""
    if not key:
        return []
    for_aws = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
    return [
        {"Effect": "Allow", "Action": list(_SNAPSHOTS), "Resource": key},
        {"Effect": "Allow", "Action": ["kms:CreateGrant"], "Resource": key, "Condition": for_aws},
    ]


def grant_command(key: str, region: str, account: str) -> str:
    """The command that lets EC2 Auto Scaling start machines whose root disk has this key; once in a key's life."""
    role = (
        f"arn:aws:iam::{account}:role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling"
    )
    return (
        f"aws kms create-grant --region {region} --key-id {key} --grantee-principal {role} "
        f"--operations {' '.join(_GRANTED)}"
    )
