"""Regimes as data: a regime is a function that returns the stages a student goes through.

A new regime is one more function with the same signature in `REGIMES`; the training loop runs stages and
knows no regime by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ikd_ray.config import Trial, make_trial


@dataclass(frozen=True)
class Stage:
    """One stretch of training with fixed losses and fixed trainable parameters.

    Layers are the student's, counted from 1. A weight of 0 switches a loss off.
    """

    name: str
    epochs: int  # at most
    layers: tuple[int, ...] = ()  # whose internal losses are on
    kl: float = 0.0  # weight of each layer's attention KL
    cos: float = 0.0  # weight of each layer's CLS cosine
    soft: float = 0.0
    hard: float = 0.0
    temperature: float = 1.0
    trains: tuple[int, ...] = ()  # layers that train
    head: bool = False  # pooler and classifier train
    embeddings: bool = False  # embeddings train
    cosine_threshold: float = (
        0.0  # ends once the top active layer's mean training cosine loss is at most this
    )
    decays: bool = True  # learning rate falls linearly to zero over `epochs`; else constant after warm-up

    @property
    def classifies(self) -> bool:
        return self.soft > 0 or self.hard > 0

    def ends(self, metrics: Mapping[str, float]) -> bool:
        """Whether an epoch with these metrics is the stage's last, however many it may have."""
        threshold = self.cosine_threshold
        return threshold > 0 and metrics[f"train/layer_{self.layers[-1]}/cos"] <= threshold

    def depth(self, student_layers: int) -> int:
        """Layers that must be run: those above the highest active one are cut off."""
        return student_layers if self.classifies else max(self.layers)

    def frozen(self, student_layers: int) -> int:
        """Lowest layers that are, embeddings included, a constant function of the input."""
        return 0 if self.embeddings else min(self.trains, default=student_layers + 1) - 1


def _classification(trial: Trial, **changes: Any) -> Stage:
    stage: dict[str, Any] = {
        "name": "C",
        "epochs": trial.epochs,
        "soft": 1.0,
        "hard": trial.lambda_,
        "temperature": trial.temperature,
        "trains": tuple(range(1, trial.student_layers + 1)),
        "head": True,
        "embeddings": trial.embeddings == "train",
    }
    return Stage(**(stage | changes))


def _internal_weights(trial: Trial) -> dict[str, float]:
    on = trial.internal_losses
    weight = trial.internal_weight
    return {"kl": weight if on in ("kl", "both") else 0.0, "cos": weight if on in ("cos", "both") else 0.0}


def hard(trial: Trial) -> list[Stage]:
    """Fine-tuning on the gold labels, no teacher."""
    return [_classification(trial, soft=0.0, hard=1.0)]


def kd(trial: Trial) -> list[Stage]:
    """Standard knowledge distillation: soft labels plus lambda times hard labels."""
    return [_classification(trial)]


def id(trial: Trial) -> list[Stage]:  # the paper's name for the regime
    """Every layer's internal losses and the classification loss at once."""
    layers = tuple(range(1, trial.student_layers + 1))
    name = "+".join(map(str, layers)) + "+C"
    return [_classification(trial, name=name, layers=layers, **_internal_weights(trial))]


def _layer_by_layer(trial: Trial, stacked: bool, trains_below: bool) -> list[Stage]:
    """One internal stage a layer, bottom up, then classification.

    An internal stage's learning rate does not depend on how long the stage lasts, so that its course is the
    same whatever ends it.
    """
    always = trial.soft_labels == "always"
    stages = []
    for k in range(1, trial.student_layers + 1):
        upto = tuple(range(1, k + 1))
        layers = upto if stacked else (k,)
        stages.append(
            Stage(
                name="+".join(map(str, layers)),
                epochs=trial.epochs_per_layer,
                layers=layers,
                soft=1.0 if always else 0.0,
                temperature=trial.temperature,
                trains=upto if trains_below else (k,),
                head=always,
                embeddings=trial.embeddings == "train" and (trains_below or k == 1),
                cosine_threshold=trial.cosine_threshold,
                decays=False,
                **_internal_weights(trial),
            )
        )
    if trial.top_trains == "head":
        return [*stages, _classification(trial, trains=(), embeddings=False)]
    return [*stages, _classification(trial)]


def pid(trial: Trial) -> list[Stage]:
    """Progressive internal distillation: one layer is optimised at a time, then classification."""
    return _layer_by_layer(trial, stacked=False, trains_below=trial.train == "upto")


def sid(trial: Trial) -> list[Stage]:
    """Stacked internal distillation: layers 1..k together, k growing, then classification."""
    return _layer_by_layer(trial, stacked=True, trains_below=True)


REGIMES: dict[str, Callable[[Trial], list[Stage]]] = {
    "hard": hard,
    "kd": kd,
    "id": id,
    "pid": pid,
    "sid": sid,
}


def plan(regime: str, student_layers: int, **options: object) -> list[Stage]:
    """The stages of a regime, in order.

    Args:
        regime: a key of `REGIMES`.
        student_layers: encoder layers of the student.
        options: further fields of `ikd_ray.config.Trial`.

    Raises:
        UsageError: an unknown regime or option, or a value out of range.
    """
    trial = make_trial({"regime": regime, "student_layers": student_layers, **options})
    return REGIMES[regime](trial)
