"""Teacher assistants: students of the teacher that teach smaller students in its place, distilled once and stored.

Source: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020 (arXiv 1902.03393): a
student much smaller than its teacher learns more from a teacher of a size in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ikd_ray.config import NOT_IN_ASSISTANTS, Precision, PrefixConfig, Trial
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.cache_keys import precision_key
from ikd_ray.distill.distributed import DistributedContext
from ikd_ray.distill.epoch import Epoch
from ikd_ray.distill.epoch_cache import EpochCache
from ikd_ray.distill.loop import Distillation
from ikd_ray.distill.memory import StepMemory
from ikd_ray.distill.stage_training import DivergedError
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import TeacherRecord, save_teacher
from ikd_ray.storage import store

FORMAT = 1
"""Part of an assistant's key; change it where the code distils an assistant in another way."""


class AssistantDivergedError(DivergedError):
    """An assistant's training loss became NaN or infinite."""


def assistant_recipe(recipe: Trial) -> dict[str, Any]:
    """Return an assistant's settings: a trial's fields under their public names, its depth as `student_layers`."""
    return {name: value for name, value in recipe.params().items() if name not in NOT_IN_ASSISTANTS}


def assistant_key(
    teacher: str, data: TaskData, recipe: Trial, memory: Sequence[float] = (), precision: Precision = "auto"
) -> str:
    """Return a digest of the teacher's key, the data and the recipe that an assistant's weights depend on.

    `memory` is the `StepMemory.key` of its training, `precision` that of the `world` of `make_assistant`.

    As for teachers, neither the machine nor the code is part of it, nor whether attention was stored: a stored
    assistant is reused, so that a sweep resumes with the same one on any machine.
    """
    return store.digest(
        "assistant", FORMAT, teacher, data.key, assistant_recipe(recipe), *memory, *precision_key(precision)
    )


def make_assistant(
    teacher: TeacherRecord,
    data: TaskData,
    targets: Targets,
    recipe: Trial,
    folder: Path,
    prefix: PrefixConfig | None = None,
    checkpoints: EpochCache | None = None,
    memory: StepMemory | None = None,
    world: DistributedContext | None = None,
) -> Iterator[Epoch]:
    """Distil an assistant of `recipe.student_layers` layers, and store it for `open_teacher` and `load_teacher`.

    Its record has the metrics of the last epoch on the evaluation splits. `world` is this process alone; None: it is
    trained on the device of the targets, in float32.

    Raises:
        AssistantDivergedError: a loss became NaN or infinite.
    """
    distillation = Distillation(recipe, data, targets, world, prefix, checkpoints, memory=memory)
    history: list[dict[str, float]] = []
    try:
        for epoch in distillation.epochs():
            history.append(epoch.metrics)
            yield epoch
    except DivergedError as error:
        raise AssistantDivergedError(f"{error} (assistant of {recipe.student_layers} layers)") from None
    splits = tuple(f"{name}/" for name in data.evaluation_splits)
    record = {
        "name": f"{recipe.student_layers}L of {teacher.name}",
        "metrics": {name: value for name, value in history[-1].items() if name.startswith(splits)},
        "settings": assistant_recipe(recipe)
        | {"layer_map": list(distillation.matched), "precision": distillation.world.training_precision},
        "history": history,
    }
    save_teacher(folder, distillation.student, str(teacher.folder), record)
