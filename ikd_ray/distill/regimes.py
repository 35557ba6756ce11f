"""Regimes as data: a regime is a function that returns the stages of a student's training.

To add a regime, write a function with the same signature and enter it in `REGIMES`: the training loop runs stages and
knows no regime by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ikd_ray.config import Trial, make_trial


@dataclass(frozen=True)
class Stage:
    """Part of the training with fixed losses and fixed trainable parameters.

    Layers are the student's, counted from 1. A weight of 0 switches a loss off.

    Attributes:
        name: the layers it matches, `1+2`, and C for classification.
        epochs: maximum number of epochs.
        layers: layers whose internal losses are on.
        kl: weight of each layer's attention KL.
        cos: weight of each layer's CLS cosine.
        soft: weight of the soft-label loss.
        hard: weight of the hard-label loss.
        temperature: of the soft-label loss.
        trains: layers that train.
        head: whether pooler and classifier train.
        embeddings: whether the embeddings train.
        cosine_threshold: the stage ends when the top active layer's mean training cosine loss is at most this.
        decays: whether the learning rate falls linearly to zero over `epochs`; else it is constant after warm-up.
    """

    name: str
    epochs: int
    layers: tuple[int, ...] = ()
    kl: float = 0.0
    cos: float = 0.0
    soft: float = 0.0
    hard: float = 0.0
    temperature: float = 1.0
    trains: tuple[int, ...] = ()
    head: bool = False
    embeddings: bool = False
    cosine_threshold: float = 0.0
    decays: bool = True

    @property
    def classifies(self) -> bool:
        """True if the stage has a classification loss."""
        return self.soft > 0 or self.hard > 0

    @property
    def uses_teacher(self) -> bool:
        """True if the stage has a loss that compares with the teacher, and so learns from texts without a label."""
        return self.soft > 0 or bool(self.layers)

    def ends(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the stage ends after an epoch with these metrics, before its maximum of epochs."""
        threshold = self.cosine_threshold
        return threshold > 0 and metrics[f"train/layer_{self.layers[-1]}/cos"] <= threshold

    def depth(self, student_layers: int) -> int:
        """Return the number of layers that must be run: up to the highest active one."""
        return student_layers if self.classifies else max(self.layers)

    def frozen(self, student_layers: int) -> int:
        """Return the number of lowest layers that, embeddings included, are a constant function of the input."""
        return 0 if self.embeddings else min(self.trains, default=student_layers + 1) - 1


def _classification(trial: Trial) -> Stage:
    return Stage(
        name="C",
        epochs=trial.epochs,
        soft=1.0,
        hard=trial.lambda_,
        temperature=trial.temperature,
        trains=tuple(range(1, trial.student_layers + 1)),
        head=True,
        embeddings=trial.embeddings == "train",
    )


def _internal_weights(trial: Trial) -> tuple[float, float]:
    """Return the weights of the attention KL and the CLS cosine."""
    kl, cos = (trial.internal_losses in (loss, "both") for loss in ("kl", "cos"))
    return kl * trial.internal_weight, cos * trial.internal_weight


def hard(trial: Trial) -> list[Stage]:
    """Return the stage of fine-tuning on the gold labels, without a teacher."""
    return [replace(_classification(trial), soft=0.0, hard=1.0)]


def kd(trial: Trial) -> list[Stage]:
    """Return the stage of standard knowledge distillation: soft labels plus lambda times hard labels."""
    return [_classification(trial)]


def id(trial: Trial) -> list[Stage]:  # the paper's name for the regime
    """Return the stage of internal distillation: every layer's internal losses and the classification loss at once."""
    layers = tuple(range(1, trial.student_layers + 1))
    name = "+".join(map(str, layers)) + "+C"
    kl, cos = _internal_weights(trial)
    return [replace(_classification(trial), name=name, layers=layers, kl=kl, cos=cos)]


def _layer_by_layer(trial: Trial, stacked: bool, trains_below: bool) -> list[Stage]:
    """Return one internal stage per layer, from the bottom up, then classification.

    An internal stage's learning rate does not depend on the stage's length, so that its epochs are the same whatever
    ends it.
    """
    always = trial.soft_labels == "always"
    kl, cos = _internal_weights(trial)
    stages = []
    for k in range(1, trial.student_layers + 1):
        upto = tuple(range(1, k + 1))
        layers = upto if stacked else (k,)
        stages.append(
            Stage(
                name="+".join(map(str, layers)),
                epochs=trial.epochs_per_layer,
                layers=layers,
                kl=kl,
                cos=cos,
                soft=1.0 if always else 0.0,
                temperature=trial.temperature,
                trains=upto if trains_below else (k,),
                head=always,
                embeddings=trial.embeddings == "train" and (trains_below or k == 1),
                cosine_threshold=trial.cosine_threshold,
                decays=False,
            )
        )
    last = _classification(trial)
    return [*stages, replace(last, trains=(), embeddings=False) if trial.top_trains == "head" else last]


def pid(trial: Trial) -> list[Stage]:
    """Return the stages of progressive internal distillation: one layer at a time, then classification."""
    return _layer_by_layer(trial, stacked=False, trains_below=trial.train == "upto")


def sid(trial: Trial) -> list[Stage]:
    """Return the stages of stacked internal distillation: layers 1..k for each k, then classification."""
    return _layer_by_layer(trial, stacked=True, trains_below=True)


REGIMES: dict[str, Callable[[Trial], list[Stage]]] = {
    "hard": hard,
    "kd": kd,
    "id": id,
    "pid": pid,
    "sid": sid,
}


def plan(regime: str, student_layers: int, **options: object) -> list[Stage]:
    """Return the stages of a regime, in order.

    Args:
        regime: a key of `REGIMES`.
        student_layers: encoder layers of the student.
        options: further fields of `ikd_ray.config.Trial`.

    Raises:
        UsageError: the regime or an option is unknown, or a value is out of range.
    """
    trial = make_trial({"regime": regime, "student_layers": student_layers, **options})
    return REGIMES[regime](trial)
