"""The memory that a dry run announces, against that of real training.

    PYTHONPATH=. python tests/sweep/test_memory_costs.py

prints the table of sweeps/README.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from ikd_ray.config import Trial
from ikd_ray.data.tokens import RaggedArray, TaskData, TokenSplit, row_offsets
from ikd_ray.distill.memory import CELL_BYTES, StepMemory
from ikd_ray.sweep.memory_costs import MemoryCosts
from ikd_ray.sweep.trial import format_error
from ikd_ray.tasks import get_task
from tests.distill.test_targets_scale import measured
from tests.helpers.tiny_models import make_encoder

ROOT = Path(__file__).resolve().parents[2]
DEFAULT_GB = StepMemory().gigabytes
TOLERANCE = 0.25
TABLE = [(length, layers, DEFAULT_GB) for length in (64, 128, 256, 512) for layers in (1, 3, 5)]
TABLE += [(512, 5, 2.0)]


def synthetic_data(length: int, train: int = 32, dev: int = 64) -> TaskData:
    """Return examples of equal length, in memory."""
    rng = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", train), ("dev", dev)):
        offsets = row_offsets(np.full(count, length))
        ids = rng.integers(1000, 20_000, count * length).astype(np.int32)
        segments = RaggedArray(np.zeros(count * length, np.uint8), offsets)
        splits[name] = TokenSplit(RaggedArray(ids, offsets), segments, rng.integers(0, 2, count))
    return TaskData(get_task("cola"), splits, 0, "synthetic", Path(), "synthetic")


def measure(length: int, layers: int, gigabytes: float) -> dict[str, float]:
    """Train a student of the bundled MiniLM for two steps in this process, and evaluate it.

    Returns:
        Peak and estimate in gigabytes, for batches of 32 (training) and 64 (evaluation).
    """
    from ikd_ray.distill.loop import distill
    from ikd_ray.distill.stage_training import trim_heap
    from ikd_ray.distill.student import layer_map
    from ikd_ray.distill.targets import Targets, build_targets
    from ikd_ray.distill.teacher import find_teacher, load_source

    torch.set_num_threads(1)
    data, memory = synthetic_data(length, train=64), StepMemory(gigabytes)
    teacher = load_source(find_teacher(None, data.task), data.task, seed=0)
    trial = Trial(regime="id", student_layers=layers, epochs=1)
    costs, report = MemoryCosts(teacher, data, 1.0, memory), {}
    with tempfile.TemporaryDirectory() as folder:
        with measured(report, "targets"):
            list(build_targets(Path(folder), data, teacher, layer_map(layers, len(teacher.layers)), True))
        trim_heap()
        with measured(report, "trial"):
            distill(trial, data, Targets(Path(folder), data, teacher), memory=memory)
    step = costs.largest_step([trial], 1)
    return {
        "peak": report["trial"]["anonymous"] / 1e9,
        "estimate": costs.fixed_gb(layers) + step.gigabytes,
        "targets": report["targets"]["anonymous"] / 1e9,
    }


def measured_in_a_process(*arguments: float) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's accounts of memory")
@pytest.mark.parametrize(
    ("length", "layers", "gigabytes"),
    [
        (64, 3, DEFAULT_GB),
        (128, 3, DEFAULT_GB),
        (128, 5, DEFAULT_GB),
        (256, 3, DEFAULT_GB),
        (512, 3, DEFAULT_GB),
    ],
)
def test_the_estimate_is_near_the_peak(length, layers, gigabytes):
    found = measured_in_a_process(length, layers, gigabytes)
    assert found["estimate"] == pytest.approx(found["peak"], rel=TOLERANCE)


def test_the_largest_step_is_that_of_training_or_of_evaluation():
    teacher, trial = make_encoder(layers=4), Trial(regime="id", student_layers=2, batch_size=32)
    shape = {"heads": 4, "hidden": 32}
    training = 2 * (35 * shape["hidden"] * 50 + 6 * shape["heads"] * 50**2)
    evaluation = 20 * shape["hidden"] * 50 + 7 * shape["heads"] * 50**2

    def largest(gigabytes, batch_size=32, workers=1):
        costs = MemoryCosts(teacher, synthetic_data(50), 0.5, StepMemory(gigabytes))
        step = costs.largest_step([trial.model_copy(update={"batch_size": batch_size})], workers)
        return step.examples, step.parts, round(step.gigabytes * 1e9 / CELL_BYTES)

    assert largest(1) == (32, 1, 32 * training)
    assert largest(1, batch_size=1000) == (64, 1, 64 * training)  # of twice 32 training examples
    assert largest(1, batch_size=1) == (64, 1, 64 * evaluation)
    assert largest(1, workers=2) == (64, 1, 64 * evaluation)
    assert largest(9.5 * training * CELL_BYTES / 1e9) == (32, 4, 8 * training)


def test_an_epoch_that_is_saved_while_the_next_one_trains_needs_three_copies_more():
    teacher = make_encoder(layers=4)
    inline, beside = (
        MemoryCosts(teacher, synthetic_data(50), 1.0, StepMemory(), in_background).fixed_gb(2)
        for in_background in (False, True)
    )
    layer = sum(parameter.numel() for parameter in teacher.layers[0].parameters())
    assert (beside - inline) * 1e9 == pytest.approx(3 * 2 * layer * CELL_BYTES)


@pytest.mark.parametrize("allocate", [torch.empty, partial(np.empty, dtype=np.uint8)])
def test_an_error_for_lack_of_memory_names_the_setting(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        allocate(2**60)
    text = format_error(caught.value)
    assert text.endswith("; a sweep with a smaller --step-memory takes less")
    assert "\n" not in text


def test_other_errors_do_not():
    assert "--step-memory" not in format_error(RuntimeError("shapes do not match"))


def test_long_texts_and_many_layers_need_more():
    """The reproduction: 5 layers of MiniLM's shape at 512 tokens in one step."""
    teacher = make_encoder(layers=6)
    teacher.config.num_attention_heads, teacher.config.hidden_size = 12, 384
    trial = Trial(regime="id", student_layers=5)
    whole, split = (
        MemoryCosts(teacher, synthetic_data(512), 1.0, StepMemory(gigabytes)).largest_step([trial], 1)
        for gigabytes in (100, 4)
    )
    assert whole.gigabytes == pytest.approx(16.5, abs=0.1)
    assert split.parts > 1
    assert 3 < split.gigabytes <= 4


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))))
    else:
        print("| tokens | layers | `--step-memory` | peak | estimate | building targets |\n|" + "---|" * 6)
        for length, layers, gigabytes in TABLE:
            found = measured_in_a_process(length, layers, gigabytes)
            cells = (f"{found[name]:.1f}" for name in ("peak", "estimate", "targets"))
            print(f"| {length} | {layers} | {gigabytes:g} | {' | '.join(cells)} |", flush=True)
