"""What became of each job, and the files that remember it over an interruption."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EQUAL, CLOSE, REFUSED, DIFFERENT, FAILED = "equal", "close", "refused", "different", "failed"
"""Equal bit for bit; different for a reason that is known; failed without the cluster, too; the two that are faults."""
GOOD = (EQUAL, CLOSE, REFUSED)


@dataclass
class Result:
    """One job, run on the cluster and with one process.

    Attributes:
        outcome: EQUAL, CLOSE, REFUSED, DIFFERENT or FAILED
        equal: how many datasets are equal bit for bit
        different: how far apart the others are
        why: the reason for CLOSE, the error for REFUSED and FAILED
        seconds: on the cluster and with one process
        tasks: the names of the tasks that were done on the cluster
    """

    ini: str
    outcome: str
    equal: int = 0
    different: dict[str, dict[str, Any]] = field(default_factory=dict)
    why: str = ""
    seconds: tuple[float, float] = (0.0, 0.0)
    tasks: list[str] = field(default_factory=list)

    @property
    def largest(self) -> float | None:
        """The largest relative difference; None where a dataset has none."""
        if any("why" in one for one in self.different.values()):
            return None
        return max((one["relative"] for one in self.different.values()), default=0.0)


class Results:
    """A file for each job that has been run with these versions.

    Args:
        directory: for all versions
        versions: what makes a result another one
    """

    def __init__(self, directory: Path, versions: Mapping[str, str]) -> None:
        digest = hashlib.sha256(json.dumps(dict(versions), sort_keys=True).encode()).hexdigest()
        self.directory = directory / digest[:16]
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "versions.json").write_text(json.dumps(dict(versions), indent=1))

    def _file(self, ini: str) -> Path:
        return self.directory / (ini.replace("/", "!") + ".json")

    def get(self, ini: str) -> Result | None:
        """The result of a job, if it has one."""
        file = self._file(ini)
        return Result(**json.loads(file.read_text())) if file.exists() else None

    def put(self, result: Result) -> None:
        """Remember a result."""
        file = self._file(result.ini)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(asdict(result)))
        new.replace(file)


def judge(
    ini: str,
    cluster: Mapping[str, Any],
    reference: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    explained: str | None,
) -> Result:
    """What the two runs of a job and the comparison of their results say.

    Args:
        cluster: what the driver answered for the run on the cluster
        reference: and for the run with one process
        comparison: of their datastores; None when one of them has none
        explained: why they may differ
    """
    result = Result(ini, FAILED, seconds=(cluster["seconds"], reference["seconds"]), tasks=cluster["tasks"])
    errors = [in_one_line(answer["error"]) if "error" in answer else None for answer in (cluster, reference)]
    if errors[0] or errors[1]:
        result.why = f"{errors[0] or 'no error'} (with one process: {errors[1] or 'no error'})"
        if errors[0] == errors[1] and not cluster.get("late"):
            result.outcome, result.why = REFUSED, str(errors[0])
    elif cluster["datastore"] == reference["datastore"]:
        result.why = f"both runs name the same results: {cluster['datastore']}"
    elif "celery" not in cluster["distributions"] or "celery" in reference["distributions"]:
        result.why = f"the runs used {cluster['distributions']} and {reference['distributions']}"
    elif comparison is None or "error" in comparison:
        result.why = f"the results could not be compared: {comparison and comparison['error']}"
    else:
        result.equal, result.different = len(comparison["equal"]), comparison["different"]
        result.outcome = CLOSE if explained and result.different else DIFFERENT if result.different else EQUAL
        result.why = explained or "" if result.different else ""
    return result


def in_one_line(error: str) -> str:
    """The last line of an error, without what is of one run.

    That is: numbers of calculations, directories, memory addresses, the order of sets.
    """
    kind = error.split(":", 1)[0]
    last = error.strip().splitlines()[-1].strip()
    line = last if last.startswith(kind) else f"{kind}: {last}"
    line = re.sub(r"(?:/[\w.@+-]+)+/(?=[\w.@+-])", "…/", line)
    line = re.sub(r"calc_\d+", "calc_N", line)
    line = re.sub(r"(?<=\{)'[^{}:]*'(?=\})", lambda items: ", ".join(sorted(items[0].split(", "))), line)
    return re.sub(r"0x[0-9a-f]+", "0x…", line)[:300]
