"""The trainables that Tune gets."""

from __future__ import annotations

import pytest
from ray import cloudpickle

from ikd_ray.config import PrefixConfig
from ikd_ray.distill.memory import StepMemory
from ikd_ray.sweep.resources import TrialResources
from ikd_ray.sweep.trainable import make_trainable
from ikd_ray.sweep.trial import TrialContext


@pytest.mark.parametrize("workers", [1, 2])
def test_a_trainable_brings_its_context_itself(workers):
    """An object of the driver's in Ray's store would end the driver at once when its raylet dies, without a message."""
    resources = TrialResources(concurrent=1, workers=workers, cpus=1, gpus=0.0, grows=False)
    context = TrialContext(None, resources, "first", "5eed", PrefixConfig(), None, StepMemory())
    trainable = cloudpickle.loads(cloudpickle.dumps(make_trainable(context)))
    found = trainable.context if workers == 1 else trainable.keywords["context"]
    assert found == context
