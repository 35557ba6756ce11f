"""Teacher assistants: students of the teacher that teach smaller ones in its place, distilled once and kept.

Source: Mirzadeh et al., "Improved Knowledge Distillation via Teacher Assistant", AAAI 2020 (arXiv 1902.03393): where
a student is much smaller than its teacher, it learns more from one of a size in between.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ikd_ray.config import NOT_IN_ASSISTANTS, PrefixConfig, Trial
from ikd_ray.data.tokens import TaskData
from ikd_ray.distill.epoch_cache import EpochCache, PendingEpoch
from ikd_ray.distill.loop import POLL_SECONDS, Distillation, Epoch
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.teacher import TEACHER_FILE, TeacherRecord
from ikd_ray.distill.teacher_files import NO_REMOTE_CODE
from ikd_ray.distill.training import DivergedError
from ikd_ray.storage import store

FORMAT = 1


class AssistantDivergedError(DivergedError):
    """An assistant's loss is no finite number any more."""


def assistant_recipe(recipe: Trial) -> dict[str, Any]:
    """How an assistant is distilled: a trial's fields under their public names, its depth as `student_layers`."""
    return {name: value for name, value in recipe.params().items() if name not in NOT_IN_ASSISTANTS}


def assistant_key(teacher: str, data: TaskData, recipe: Trial) -> str:
    """What an assistant's weights depend on.

    That is the teacher's key, the data and the recipe. Not the machine, nor the code, nor whether attention was stored:
    as with teachers, the one that is there is taken, so that a sweep goes on with the same wherever and whenever.
    """
    return store.digest("assistant", FORMAT, teacher, data.key, assistant_recipe(recipe))


def make_assistant(
    teacher: TeacherRecord,
    data: TaskData,
    targets: Targets,
    recipe: Trial,
    folder: Path,
    prefix: PrefixConfig | None = None,
    checkpoints: EpochCache | None = None,
) -> Iterator[Epoch]:
    """Distil an assistant of `recipe.student_layers` layers and keep it as teachers are kept; yields its epochs.

    `folder` then opens with `open_teacher` and `load_teacher`. Its record's metrics are those of the last epoch on the
    evaluation splits, against the teacher.

    Args:
        targets: the teacher's, on the device to train on, with those of the layers that the assistant's are mapped to.
        checkpoints: where its epochs are saved and found, so that one that was cut off goes on.

    Raises:
        AssistantDivergedError: a loss became NaN or infinite.
    """
    run = Distillation(recipe, data, targets, prefix=prefix, checkpoints=checkpoints)
    history: list[dict[str, float]] = []
    try:
        for event in run:
            if isinstance(event, PendingEpoch):
                time.sleep(POLL_SECONDS)
            else:
                history.append(event.metrics)
                yield event
    except DivergedError as error:
        raise AssistantDivergedError(f"{error} (of {recipe.student_layers} layers)") from None
    splits = tuple(f"{name}/" for name in data.evaluation_splits)
    card = {
        "name": f"{recipe.student_layers}L of {teacher.name}",
        "metrics": {name: value for name, value in history[-1].items() if name.startswith(splits)},
        "settings": assistant_recipe(recipe) | {"layer_map": list(run.matched)},
        "history": history,
    }

    def write(aside: Path) -> None:
        run.student.model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(teacher.folder, **NO_REMOTE_CODE).save_pretrained(aside)
        (aside / TEACHER_FILE).write_text(json.dumps(card, indent=1))

    store.get_or_build(folder, write)
