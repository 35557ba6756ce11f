"""The trainables that Tune gets."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray import cloudpickle

from ikd_ray.config import PrefixConfig
from ikd_ray.distill.memory import StepMemory
from ikd_ray.storage.remote import SharedStorage
from ikd_ray.sweep.resources import TrialResources
from ikd_ray.sweep.trainable import make_trainable
from ikd_ray.sweep.trial_context import SharedArtifacts, TeacherArtifacts, TrialContext
from ikd_ray.sweep.trial_results import REPORT
from tests.helpers.terminal import make_epoch

RECEIVE = """
import sys
from ray import cloudpickle
cloudpickle.loads(sys.stdin.buffer.read())
assert "transformers" not in sys.modules
"""


@pytest.fixture
def make_context(tmp_path):
    """`make_context(workers)`: the context of a sweep's trials."""

    def make(workers: int) -> TrialContext:
        resources = TrialResources(concurrent=1, workers=workers, cpus=1, gpus=0.0, grows=False)
        teacher = TeacherArtifacts(tmp_path, tmp_path, (), True)
        artifacts = SharedArtifacts(SharedStorage(str(tmp_path)), tmp_path, teacher, {}, {3: teacher})
        return TrialContext(artifacts, resources, "first", "5eed", PrefixConfig(), None, StepMemory())

    return make


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trainable_brings_its_context_itself(make_context, workers):
    """An object of the driver's in Ray's store would end the driver at once when its raylet dies, without a message."""
    context = make_context(workers)
    trainable = cloudpickle.loads(cloudpickle.dumps(make_trainable(context)))
    found = trainable.context if workers == 1 else trainable.keywords["context"]
    assert found == context


def test_processes_that_only_forward_reports_import_no_models(make_context):
    """Ray starts several of them for each trial with several workers; an import of models takes seconds."""
    received = cloudpickle.dumps((make_trainable(make_context(2)), {REPORT: make_epoch(1, 0)}))
    subprocess.run([sys.executable, "-c", RECEIVE], input=received, check=True, timeout=60)
