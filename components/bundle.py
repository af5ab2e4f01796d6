"""The engine bundle: what the master builds the engine from, and the private bucket that hands it over.

User data is limited to 16 KB and the engine's hash-locked requirements alone are larger, hence a bucket.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pulumi
import pulumi_aws as aws

from components import keys
from components.component import Component
from components.roles import document

_OLD_VERSION_DAYS: Final = 30  # long enough to notice; a bundle has some hundred KB
# What the bundle is made of, within engine/. Named one by one, so that a stray file rebuilds nobody's engine.
_PARTS: Final = (
    "build-image",
    "bootstrap.txt",
    "requirements.txt",
    "pyproject.toml",
    "oq_celery.pth",
    "oq_celery",
    "oq_fleet",
    "oq_idle",
    "oq_keys",
    "oq_logs",
    "oq_refresh",
    "oq_webui",
)
_MODULES: Final = (".py", ".typed", ".conf", ".html")  # what counts of a directory


@dataclass(frozen=True)
class Bundle:
    """The engine bundle: a zip archive and its SHA-256 in hex."""

    data: bytes
    sha256: str


def engine_bundle(directory: Path) -> Bundle:
    """Pack the engine's sources in `directory`; the same sources give the same bytes on every machine.

    Raises FileNotFoundError if a part is missing. Nothing is compressed, because zlib's versions compress
    differently, and another hash means another engine and another master.
    """
    files = []
    for part in _PARTS:
        path = directory / part
        if not path.exists():
            raise FileNotFoundError(f"the engine bundle needs {path}")
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in _MODULES]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as bundle:
        for file in sorted(files):
            name = file.relative_to(directory).as_posix()
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3  # Unix, wherever this runs
            entry.external_attr = 0o644 << 16
            bundle.writestr(
                entry, file.read_bytes().replace(b"\r\n", b"\n")
            )  # of a clone made by Windows' Git
    data = archive.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())


@dataclass(frozen=True)
class BundleStoreArgs:
    """The bundle to store, in a bucket with the customer's key (an ARN), or S3's own for ""."""

    bundle: Bundle
    region: str
    key: str


class BundleStore(Component):
    """A private, encrypted bucket with the engine bundle in it. It holds nothing else and goes away with the
    stack, with all versions. `key` is the object's, `key_reader` what a role that reads it needs besides.
    """

    bucket: pulumi.Output[str]
    bucket_arn: pulumi.Output[str]
    key: str
    sha256: str
    key_reader: list[dict[str, Any]]

    def __init__(self, name: str, args: BundleStoreArgs, opts: pulumi.ResourceOptions | None = None) -> None:
        super().__init__(name, opts)
        bucket, policy = self._private_bucket(args.key)
        lifecycle = self._versions(bucket, policy)
        self.key_reader = keys.rights(args.key, f"s3.{args.region}.amazonaws.com", "kms:Decrypt")
        self.sha256 = args.bundle.sha256
        self.key = f"engine/{self.sha256}.zip"
        aws.s3.BucketObjectv2(
            self.named("engine"),
            bucket=bucket.id,
            key=self.key,
            content_base64=base64.b64encode(args.bundle.data).decode(),
            content_type="application/zip",
            tags=self.tags("engine"),
            opts=self.child(depends_on=[lifecycle]),
        )
        self.bucket, self.bucket_arn = bucket.id, bucket.arn
        self.register_outputs({"bucket": self.bucket, "key": self.key})

    def _private_bucket(self, key: str) -> tuple[aws.s3.Bucket, aws.s3.BucketPolicy]:
        """A bucket with the key whose ARN is given, and the last of its locks."""
        bucket = aws.s3.Bucket(
            self.named("bucket"), force_destroy=True, tags=self.tags("bucket"), opts=self.child()
        )
        block = aws.s3.BucketPublicAccessBlock(
            self.named("private"),
            bucket=bucket.id,
            block_public_acls=True,
            block_public_policy=True,
            ignore_public_acls=True,
            restrict_public_buckets=True,
            opts=self.child(),
        )
        # One after the other: S3 may refuse a change of a bucket while it makes another one.
        ownership = aws.s3.BucketOwnershipControls(
            self.named("ownership"),
            bucket=bucket.id,
            rule=aws.s3.BucketOwnershipControlsRuleArgs(object_ownership="BucketOwnerEnforced"),
            opts=self.child(depends_on=[block]),
        )
        encryption = aws.s3.BucketServerSideEncryptionConfiguration(
            self.named("encryption"),
            bucket=bucket.id,
            rules=[
                aws.s3.BucketServerSideEncryptionConfigurationRuleArgs(
                    apply_server_side_encryption_by_default=(
                        aws.s3.BucketServerSideEncryptionConfigurationRuleApplyServerSideEncryptionByDefaultArgs(
                            sse_algorithm="aws:kms" if key else "AES256",
                            kms_master_key_id=key or None,
                        )
                    ),
                    bucket_key_enabled=True if key else None,
                    # Nobody brings keys of their own; AWS's default for buckets since April 2026.
                    blocked_encryption_types=["SSE-C"],
                )
            ],
            opts=self.child(depends_on=[ownership]),
        )
        policy = aws.s3.BucketPolicy(
            self.named("tls-only"),
            bucket=bucket.id,
            policy=document(
                {
                    "Sid": "TlsOnly",
                    "Effect": "Deny",
                    "Principal": "*",
                    "Action": "s3:*",
                    "Resource": [bucket.arn, pulumi.Output.concat(bucket.arn, "/*")],
                    "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                }
            ),
            opts=self.child(depends_on=[encryption]),
        )
        return bucket, policy

    def _versions(self, bucket: aws.s3.Bucket, after: pulumi.Resource) -> aws.s3.BucketLifecycleConfiguration:
        """What keeps former versions of the objects for some time."""
        # A bundle's key is its hash, so only what somebody overwrote or removed beside Pulumi has an older version.
        versioning = aws.s3.BucketVersioning(
            self.named("versions"),
            bucket=bucket.id,
            versioning_configuration=aws.s3.BucketVersioningVersioningConfigurationArgs(status="Enabled"),
            opts=self.child(depends_on=[after]),
        )
        return aws.s3.BucketLifecycleConfiguration(
            self.named("lifecycle"),
            bucket=bucket.id,
            rules=[
                aws.s3.BucketLifecycleConfigurationRuleArgs(
                    id="old-versions",
                    status="Enabled",
                    filter=aws.s3.BucketLifecycleConfigurationRuleFilterArgs(prefix=""),
                    noncurrent_version_expiration=(
                        aws.s3.BucketLifecycleConfigurationRuleNoncurrentVersionExpirationArgs(
                            noncurrent_days=_OLD_VERSION_DAYS
                        )
                    ),
                    abort_incomplete_multipart_upload=(
                        aws.s3.BucketLifecycleConfigurationRuleAbortIncompleteMultipartUploadArgs(
                            days_after_initiation=1
                        )
                    ),
                )
            ],
            opts=self.child(depends_on=[versioning]),
        )
