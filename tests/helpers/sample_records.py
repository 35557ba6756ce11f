"""Records of sweeps and trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ikd_ray.records import SweepRecord, TrialRecord

OBJECTIVES = {"dev/mcc": "max", "student/params": "min"}


def sweep_record(name: str = "first", task: str = "cola", **changes: Any) -> SweepRecord:
    """Return the record of a sweep; `changes` are further fields, or keys of `data`."""
    data = {"source": "folder", "description": "8551 train | 1043 dev", "fingerprint": "f00d"}
    data |= {"generated": False, "max_length": 48}
    fields = {
        "seed": 7,
        "trials": 3,
        "command": f"python sweeps/run.py --task {task} --name {name}",
        "code_version": "0.1.0+gabc1234",
        "data": data | {key: changes.pop(key) for key in (*data, "selection") if key in changes},
        "teacher": {"name": "mini", "key": "key", "layers": 6, "metrics": {"dev/mcc": 0.41}},
        "objectives": OBJECTIVES,
    }
    return SweepRecord(name, task, **(fields | changes))


def trial_record(
    number: int, metrics: dict[str, float], status: str = "finished", **fields: Any
) -> TrialRecord:
    """Return the record of a trial of standard distillation with a layer; `fields` are further ones."""
    given = {"id": f"t{number:03}", "params": {"regime": "kd"}, "layer_map": [2]} | fields
    return TrialRecord(number=number, status=status, metrics=metrics, **given)


def edit_trial_records(sweep: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of every trial.json of a sweep with `change`."""
    for file in (sweep / "trials").glob("*/trial.json"):
        record = json.loads(file.read_text())
        change(record)
        file.write_text(json.dumps(record))
