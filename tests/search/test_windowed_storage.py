"""The part of a long study that the sampler sees."""

import optuna
from optuna.trial import FrozenTrial, TrialState

from ikd_ray.search import windowed_storage
from ikd_ray.search.windowed_storage import WindowedStorage


def test_the_sampler_sees_the_newest_results_and_the_front(monkeypatch):
    monkeypatch.setattr(windowed_storage, "WINDOW", 3)
    study = optuna.create_study(storage=WindowedStorage([-1, 1]), directions=["maximize", "minimize"])
    points = [(9.0, 5.0), (1.0, 1.0), (9.0, 5.0), (8.0, 6.0), (7.0, 7.0), (9.0, 4.0), (1.0, 9.0), (1.0, 9.0)]
    visible = []
    for values in points:
        study.tell(study.ask(), values)
        visible.append([trial.number for trial in study.get_trials(deepcopy=False)])
    study.ask()
    assert visible[2] == [0, 1, 2]
    assert visible[3] == [0, 1, 2, 3]  # 0 is on the front, 2 equals it
    assert visible[4] == [0, 1, 2, 3, 4]
    assert visible[5] == [1, 3, 4, 5]  # 5 dominates 0
    assert visible[7] == [1, 5, 6, 7]
    assert [trial.number for trial in study.get_trials(deepcopy=False)] == [1, 5, 6, 7, 8]


def test_a_failed_trial_is_hidden():
    study = optuna.create_study(storage=WindowedStorage([-1]), directions=["maximize"])
    study.tell(study.ask(), state=TrialState.FAIL)
    study.tell(study.ask(), 1.0)
    assert [trial.number for trial in study.get_trials()] == [1]


def test_neither_a_suggestion_nor_a_result_reads_a_hidden_trial(monkeypatch):
    """Otherwise each of them takes longer, the more trials there are."""
    monkeypatch.setattr(windowed_storage, "WINDOW", 3)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=2)
    study = optuna.create_study(storage=WindowedStorage([-1]), directions=["maximize"], sampler=sampler)
    read = {}  # the trials by id, kept so that no other one gets the same id

    def read_attribute(trial, name):
        read[id(trial)] = trial
        return object.__getattribute__(trial, name)

    counts = []
    with monkeypatch.context() as patch:
        patch.setattr(FrozenTrial, "__getattribute__", read_attribute)
        for _ in range(40):
            read.clear()
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            study.tell(trial, 1.0)
            counts.append(len(read))
    assert max(counts[20:]) <= max(counts[:20]) < 20
