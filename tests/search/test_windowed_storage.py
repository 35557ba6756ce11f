"""The part of a long study that the sampler sees."""

import optuna

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
