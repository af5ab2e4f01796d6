"""The program run for a lab on this machine: its configuration, and its recording."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from components import facts
from components.settings import KEYS, Settings, SettingsError
from lab.aws import answers, recorder
from lab.aws.recording import Recording
from lab.base import REPOSITORY, LabError
from lab.cluster.build import worker_share
from lab.linux.host import cores

SMALL_VOLUMES = {"homeVolumeGb": 1, "varVolumeGb": 6, "rabbitmqVolumeGb": 4}


def read_config(stack: str, settings: Iterable[str]) -> dict[str, str]:
    """The configuration of a stack's file, `key=value` settings over it, as Pulumi hands it to the program.

    Args:
        stack: a stack whose `Pulumi.<stack>.yaml` exists
    """
    path = REPOSITORY / f"Pulumi.{stack}.yaml"
    if not path.is_file():
        raise LabError(f"--stack {stack}: there is no {path.name}")
    config = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in (yaml.safe_load(path.read_text()) or {}).get("config", {}).items()
    }
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise LabError(f"--set {setting}: write key=value")
        config[key if ":" in key else f"{facts.PROJECT}:{key}"] = value
    return config


def small_config(stack: str, settings: Mapping[str, object]) -> dict[str, str]:
    """The same with volumes as small as tests and measurements want them; `settings` win over those, too."""
    return read_config(stack, [f"{key}={value}" for key, value in {**SMALL_VOLUMES, **settings}.items()])


def own_instance_type(name: str, vcpus: int, architecture: str = "x86_64") -> dict[str, Any]:
    """The answer to getInstanceType for a machine with so many of this one's cores, and its memory."""
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**2
    return answers.instance_type_answer(name, vcpus, memory_mb, architecture)


def record(config: Mapping[str, str], program: Path = recorder.PROGRAM) -> Recording:
    """Run the program; instance types have the processors and the memory that this machine can give them."""
    prefix = f"{facts.PROJECT}:"
    own = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
    try:
        settings = Settings.parse({key: own.get(key) for key in sorted({*own, *KEYS})})
    except SettingsError as error:
        raise LabError(str(error)) from None

    def instance_type(arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        name = arguments["instanceType"]
        vcpus = (
            len(cores()) if name == settings.master_instance_type else worker_share(settings.worker_desired)
        )
        return own_instance_type(name, vcpus, settings.architecture)

    return recorder.run_program(
        config, invokes={"aws:ec2/getInstanceType:getInstanceType": instance_type}, program=program
    )
