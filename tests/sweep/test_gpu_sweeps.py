"""Sweeps on GPUs. Skipped without one, unless `--rehearse` runs them on the CPU."""

from __future__ import annotations

import pytest
import torch

from ikd_ray.distill.processor import supports_bfloat16
from tests.helpers.run_command import sweep_flags
from tests.sweep.conftest import Swept, run_to_its_end

pytestmark = pytest.mark.gpu
SPACE = """\
sampler: grid
params:
  regime: {choice: REGIMES}
  student_layers: 2
  epochs: 1
  epochs_per_layer: 1
  batch_size: 16
teacher: {epochs: 1}
"""


def swept(environment, inputs, home, regimes: list[str], *flags: object) -> Swept:
    given = sweep_flags(inputs, home, "all", SPACE.replace("REGIMES", str(regimes)), *flags)
    found = run_to_its_end(Swept(home, "all", []), environment, given)
    [ended] = found.exits
    assert (ended.status, ended.errors) == (0, ""), ended.text
    assert [trial.status for trial in found.trials] == ["finished"] * len(regimes)
    return found


@pytest.mark.parametrize("share", [1, 0.5])
def test_trials_train_on_a_gpu_that_they_may_share(environment, inputs, tmp_path, device, share):
    is_gpu = device.type == "cuda"
    flags = ["--gpus-per-worker", share, "--concurrent", int(1 / share)] if is_gpu else ["--concurrent", 2]
    found = swept(environment, inputs, tmp_path, ["kd", "id", "pid", "sid"], *flags)
    assert {trial.precision for trial in found.trials} == {
        "bfloat16" if supports_bfloat16(device) else "float32"
    }


def test_a_trial_trains_with_two_workers(environment, inputs, tmp_path, device):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU; NCCL needs two")
    swept(environment, inputs, tmp_path, ["pid"], "--workers-per-trial", 2)
