"""Trials that share epochs: whatever is taken and whatever is trained, the numbers are those of a trial alone."""

from __future__ import annotations

import json
import resource
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny import changed, make_encoder, state

from ikd_ray.config import PrefixConfig, Trial
from ikd_ray.data import store
from ikd_ray.distill import checkpoint
from ikd_ray.distill.checkpoint import Busy, Checkpoints
from ikd_ray.distill.loop import Distillation, distill
from ikd_ray.distill.prefix import KEPT
from ikd_ray.distill.regimes import REGIMES
from ikd_ray.distill.targets import Targets
from ikd_ray.distill.training import StageTraining

SMALL = {"student_layers": 2, "batch_size": 24, "learning_rate": 3e-3, "epochs": 2, "epochs_per_layer": 2}
PID = Trial(**SMALL, regime="pid")
EPOCH = StageTraining.epoch
RECOMPUTED = PrefixConfig(memory_gb=0, disk_gb=0)
PREFIXES = {"memory": PrefixConfig(), "disk": PrefixConfig(memory_gb=0), "recomputed": RECOMPUTED}


def like(trial: Trial, **fields) -> Trial:
    return trial.model_copy(update=fields)


def numbers(metrics: dict[str, float]) -> dict[str, float]:
    """What does not depend on who trained."""
    counts = ("reused_epochs", "trained_epochs")
    return {name: value for name, value in metrics.items() if "time/" not in name and name not in counts}


def outcome(course: Distillation, epochs: list) -> SimpleNamespace:
    return SimpleNamespace(
        epochs=epochs,
        metrics=[numbers(epoch.metrics) for epoch in epochs],
        state=state(course.student),
        reused=int(epochs[-1].metrics["reused_epochs"]),
        trained=int(epochs[-1].metrics["trained_epochs"]),
        warnings=[warning for epoch in epochs for warning in epoch.warnings],
    )


def assert_same(found: SimpleNamespace, expected: SimpleNamespace) -> None:
    """Bit for bit; every epoch given once and in order."""
    assert [epoch.epoch for epoch in found.epochs] == list(range(1, len(expected.epochs) + 1))
    assert [epoch.remaining for epoch in found.epochs] == [epoch.remaining for epoch in expected.epochs]
    assert found.metrics == expected.metrics
    assert not changed(found.state, expected.state)
    assert found.reused + found.trained == len(found.epochs)


@pytest.fixture(scope="module")
def dropping(data, targets):
    """Targets of a teacher, and so students, that drop out."""
    return Targets(targets.folder, data, make_encoder(dropout=0.1))


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "epochs"


@pytest.fixture
def start(data, dropping, folder):
    """`start(trial, "name")`: a trial that shares its epochs, not yet begun; without a name one that does not."""

    def make(trial: Trial, name: str = "", prefix: PrefixConfig | None = None) -> Distillation:
        shared = Checkpoints(folder, 20, name, f"owner of {name}") if name else None
        return Distillation(trial, data, dropping, prefix=prefix, checkpoints=shared)

    return make


@pytest.fixture
def run(start):
    """`start`, and through all of it."""

    def make(*arguments, **more) -> SimpleNamespace:
        course = start(*arguments, **more)
        return outcome(course, list(course))

    return make


@pytest.fixture(scope="module")
def alone(data, dropping):
    """What a trial gives that shares nothing, found once."""
    known: dict[tuple, SimpleNamespace] = {}

    def make(trial: Trial, prefix: PrefixConfig | None = None) -> SimpleNamespace:
        key = trial.model_dump_json(), str(prefix)
        if key not in known:
            course = Distillation(trial, data, dropping, prefix=prefix)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(StageTraining, "epoch", EPOCH)  # for `trained` it is none of the trials
                known[key] = outcome(course, list(course))
        return known[key]

    return make


@pytest.fixture
def trained(monkeypatch):
    """(stage, epoch) of every epoch that was really trained."""
    calls = []

    def spy(self, number: int):
        calls.append((self.stage.name, number))
        return EPOCH(self, number)

    monkeypatch.setattr(StageTraining, "epoch", spy)
    return calls


def saved(folder: Path, stage: str, epoch: int) -> Path:
    """Where the one state after a stage's epoch is."""
    (found,) = (
        path.parent
        for path in folder.glob(f"[!.]*/{epoch}/epoch.json")
        if json.loads(path.read_text())["about"]["stage"] == stage
    )
    return found


FIELDS = [
    *({"regime": regime} for regime in REGIMES if regime not in ("pid", "sid")),
    {"regime": "id", "embeddings": "train", "internal_losses": "kl"},
    {"regime": "pid", "soft_labels": "always", "top_trains": "head"},
    {"regime": "pid", "embeddings": "train", "internal_losses": "kl", "student_layers": 3},
    {"regime": "pid", "train": "upto", "embeddings": "train", "soft_labels": "always"},
    {"regime": "pid", "top_trains": "head", "internal_losses": "cos", "student_layers": 3},
    {"regime": "sid", "soft_labels": "always", "embeddings": "train"},
    {"regime": "sid", "top_trains": "head", "student_init": "first", "internal_losses": "cos"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "-".join(map(str, fields.values())))
def test_what_is_reused_changes_nothing(run, alone, fields):
    """Nothing of the trial, a part of it and all of it were trained by others before."""
    trial = Trial(**(SMALL | fields))
    others = {
        "shorter": like(trial, cosine_threshold=1.0, epochs=1),
        "longer": like(trial, epochs_per_layer=3),
        "lambda": like(trial, lambda_=0.5),
    }
    for name, other in others.items():
        assert_same(run(other, name), alone(other))
    part, whole = run(trial, "part"), run(trial, "whole")
    assert_same(part, alone(trial))
    assert_same(whole, alone(trial))
    internal = 2 * trial.student_layers if trial.regime in ("pid", "sid") else 0
    assert part.reused == (internal or trial.epochs)  # without internal stages the longer one was the same
    assert whole.trained == 0
    assert not part.warnings + whole.warnings


CUT = [
    {"regime": "id", "embeddings": "train"},
    {"regime": "pid", "soft_labels": "always"},
    {"regime": "pid", "top_trains": "head", "embeddings": "train"},
    {"regime": "sid", "epochs_per_layer": 3, "cosine_threshold": 1.0},
]


@pytest.mark.parametrize("fields", CUT, ids=lambda fields: "-".join(map(str, fields.values())))
def test_a_trial_that_is_cut_off_goes_on(start, run, alone, trained, folder, fields):
    """After whichever epoch; what it had trained itself is not called reused."""
    trial = Trial(**(SMALL | fields))
    expected = alone(trial)
    for done in range(1, len(expected.epochs)):
        shutil.rmtree(folder, ignore_errors=True)
        first = start(trial, "cut")
        epochs = iter(first)
        begun = [next(epochs) for _ in range(done)]
        epochs.close()
        trained.clear()
        whole = run(trial, "cut")
        assert_same(whole, expected)
        assert len(trained) == len(expected.epochs) - done
        for number, epoch in enumerate(whole.epochs, start=1):
            assert epoch.metrics["reused_epochs"] == 0
            assert epoch.metrics["trained_epochs"] == number
            assert not epoch.reused_from
        assert [epoch.metrics for epoch in begun] == [epoch.metrics for epoch in whole.epochs[:done]]


def test_an_epoch_that_breaks_off_is_as_if_never_begun(start, run, alone, trained, monkeypatch):
    step, steps = StageTraining._step, []

    def breaks(self, *arguments):
        steps.append(self.stage.name)
        if len(steps) == 6:  # in the middle of epoch 3
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(StageTraining, "_step", breaks)
    with pytest.raises(KeyboardInterrupt):
        list(start(PID, "broken off"))
    monkeypatch.setattr(StageTraining, "_step", step)
    trained.clear()
    found = run(PID, "next")
    assert_same(found, alone(PID))
    assert trained == [("2", 1), ("2", 2), ("C", 1), ("C", 2)]
    assert not found.warnings


def test_each_epoch_is_trained_once(run, trained):
    """Over trials that differ in when they move up: an epoch is what it is and how long those below it took."""
    done = Counter()
    for each in (2, 4, 1, 3):
        trained.clear()
        course = run(like(PID, epochs_per_layer=each, student_layers=3), f"{each}")
        assert len(trained) == course.trained
        stages = {"1": (), "2": (each,), "3": (each, each), "C": (each, each, each)}
        done.update((stages[stage], number) for stage, number in trained)
    assert set(done.values()) == {1}
    expected = {((), number) for number in range(1, 5)}
    expected |= {((each,) * depth, n + 1) for each in range(1, 5) for depth in (1, 2) for n in range(each)}
    expected |= {((each,) * 3, n + 1) for each in range(1, 5) for n in range(2)}
    assert set(done) == expected


def test_pid_and_sid_share_the_first_layer(run, alone):
    run(PID, "pid")
    sid = like(PID, regime="sid")
    found = run(sid, "sid")
    assert_same(found, alone(sid))
    assert [epoch.reused_from for epoch in found.epochs] == ["pid", "pid", "", "", "", ""]


def test_a_trial_takes_what_another_trains_right_now(start, alone, trained):
    """Two at once, in one process: one waits whenever the other is at the epoch that it needs."""
    other = like(PID, lambda_=0.5)
    courses = start(PID, "a"), start(other, "b")
    given, open_ = ([], []), {0: iter(courses[0]), 1: iter(courses[1])}
    waited = [0, 0]
    while open_:
        for who in (0, 1, 1):  # the second is the quicker one
            event = next(open_[who], None) if who in open_ else None
            if event is None:
                open_.pop(who, None)
            elif isinstance(event, Busy):
                waited[who] += 1
                assert not event.ready()
            else:
                given[who].append(event)
    for course, epochs, trial in zip(courses, given, (PID, other), strict=True):
        assert_same(outcome(course, epochs), alone(trial))
    assert Counter(stage for stage, _ in trained) == {"1": 2, "2": 2, "C": 4}
    assert waited[1]


def test_a_trial_that_is_given_up_lets_the_others_on(start, alone):
    first, second = iter(start(PID, "first")), start(PID, "second")
    next(first)
    epochs, events = [], iter(second)
    epochs.append(next(events))
    busy = next(events)
    assert isinstance(busy, Busy)
    assert not busy.ready()
    first.close()
    assert busy.ready()
    epochs += events
    assert_same(outcome(second, epochs), alone(PID))
    assert (epochs[0].reused_from, epochs[1].reused_from) == ("first", "")


@pytest.mark.parametrize("fields", [{}, {"top_trains": "head"}, {"embeddings": "train"}], ids=str)
def test_what_frozen_layers_give_stored_and_recomputed(run, alone, fields):
    """In memory and in a file it is the same; computed again in other batches its last digits are others."""
    trial = like(PID, student_layers=3, **fields)
    places = (("memory", 0), ("recomputed", 2), ("disk", 8), ("recomputed", 8), ("memory", 8))
    for turn, (place, reused) in enumerate(places):
        found = run(trial, f"{turn}", prefix=PREFIXES[place])
        assert_same(found, alone(trial, PREFIXES[place]))
        assert found.reused == reused


def test_without_the_room_that_was_promised_nothing_is_passed_on(run, alone, monkeypatch):
    """What is trained from then on has other last digits than its key says."""
    config = PREFIXES["disk"]
    with monkeypatch.context() as patch:
        patch.setattr(store, "SPARE", 0)
        assert_same(run(PID, "no room", prefix=config), alone(PID, RECOMPUTED))
    found = run(PID, "room", prefix=config)
    assert_same(found, alone(PID, config))
    assert found.reused == 2


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


PARTS = ("epoch.json", "weights.safetensors", "optimizer.safetensors")
DAMAGES = {
    f"{harm.__name__} {part}": lambda state, harm=harm, part=part: harm(state / part)
    for harm in (flip, halve, Path.unlink)
    for part in PARTS
}
DAMAGES["no manifest"] = lambda state: (state / "manifest.json").unlink()
DAMAGES["half a manifest"] = lambda state: halve(state / "manifest.json")
DAMAGES["empty"] = lambda state: [file.unlink() for file in state.iterdir()]
PLACES = [("1", 1), ("1", 2), ("2", 1), ("2", 2), ("C", 1), ("C", 2)]


@pytest.fixture(scope="module")
def kept(tmp_path_factory, data, dropping):
    """The states of a whole trial, to be copied."""
    folder = tmp_path_factory.mktemp("kept") / "epochs"
    distill(PID, data, dropping, checkpoints=Checkpoints(folder, 20, "first"))
    return folder


@pytest.mark.parametrize(
    ("damage", "place"),
    [*((name, ("2", 1)) for name in DAMAGES), *(("flip " + PARTS[1], place) for place in PLACES)],
    ids=str,
)
def test_a_damaged_state_is_trained_anew(run, alone, trained, kept, folder, damage, place):
    """It alone: those after it are as good as ever."""
    shutil.copytree(kept, folder)
    broken = saved(folder, *place)
    DAMAGES[damage](broken)
    found = run(PID, "next")
    assert_same(found, alone(PID))
    assert trained == [place]
    assert len(found.warnings) == 1
    assert str(broken) in found.warnings[0]
    assert store.is_intact(broken)
    after = run(PID, "after")
    assert_same(after, alone(PID))
    assert (after.trained, after.warnings) == (0, [])


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_a_missing_state_is_trained_without_a_word(run, alone, trained, kept, folder, place):
    shutil.copytree(kept, folder)
    shutil.rmtree(saved(folder, *place))
    found = run(PID, "next")
    assert_same(found, alone(PID))
    assert (trained, found.warnings) == ([place], [])
    assert store.is_intact(saved(folder, *place))


@pytest.mark.parametrize("harm", [flip, halve, Path.unlink], ids=lambda harm: harm.__name__)
def test_a_damaged_output_of_the_encoder_is_computed_anew(run, alone, trained, folder, harm):
    """What heads alone train on is kept beside the states."""
    head = like(PID, top_trains="head")
    run(head, "first")
    for file in folder.glob(f"[!.]*/*/{KEPT}"):
        harm(file)
    other, trained[:] = like(head, lambda_=0.5), []
    assert_same(run(other, "next"), alone(other))
    assert trained == [("C", 1), ("C", 2)]
    assert all(store.is_intact(file.parent) for file in folder.glob(f"[!.]*/*/{KEPT}"))


def test_forgotten_checks_are_no_damage(run, trained, kept, folder):
    shutil.copytree(kept, folder)
    for notes in folder.glob(f"*/*/{store.VERIFIED}"):
        notes.unlink()
    assert not run(PID, "next").warnings
    assert not trained


def all_of(folder: Path) -> None:
    for state_ in list(folder.glob("[!.]*/[!.]*")):
        shutil.rmtree(state_)


LOSSES = {
    "weights, C": lambda folder: (saved(folder, "2", 2) / PARTS[1]).unlink(),
    "weights, 1": lambda folder: (saved(folder, "1", 2) / PARTS[1]).unlink(),
    "cut weights": lambda folder: halve(saved(folder, "1", 2) / PARTS[1]),
    "folder": lambda folder: shutil.rmtree(saved(folder, "2", 2)),
    "stage": lambda folder: shutil.rmtree(saved(folder, "1", 2).parent),
    "all": all_of,
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_state_that_vanishes_before_it_is_loaded(start, alone, trained, kept, folder, loss):
    """Four epochs were given when it goes; none of them is given again."""
    shutil.copytree(kept, folder)
    trial = like(PID, lambda_=0.5)
    course = start(trial, "next")
    events = iter(course)
    epochs = [next(events) for _ in range(4)]
    LOSSES[loss](folder)
    epochs += events
    found = outcome(course, epochs)
    assert_same(found, alone(trial))
    assert sorted(trained[-2:]) == [("C", 1), ("C", 2)]
    assert len(trained) == (6 if loss == "all" else 4 if loss == "stage" else 3)
    assert any("trained anew" in warning for warning in found.warnings)


def test_an_optimizer_that_vanishes_before_it_is_loaded(start, alone, trained, kept, folder):
    """In the middle of a stage, which a longer trial goes on with."""
    shutil.copytree(kept, folder)
    trial = like(PID, epochs_per_layer=3)
    course = start(trial, "next")
    events = iter(course)
    epochs = [next(events) for _ in range(2)]
    (saved(folder, "1", 2) / PARTS[2]).unlink()
    epochs += events
    assert_same(outcome(course, epochs), alone(trial))
    assert trained[:2] == [("1", 2), ("1", 3)]


def test_a_state_that_cannot_be_loaded_although_it_is_there(start, alone, kept, folder, monkeypatch):
    """Its checksum was right when it was looked at, and reading it fails, again and again."""
    shutil.copytree(kept, folder)
    bad, load, tries = saved(folder, "1", 2), checkpoint.load_file, []

    def fails(path, *more):
        if Path(path).parent == bad:
            tries.append(path)
            assert len(tries) < 20, "the trial never ends"
            raise OSError(5, "Input/output error")
        return load(path, *more)

    monkeypatch.setattr(checkpoint, "load_file", fails)
    trial = like(PID, lambda_=0.5)
    course = start(trial, "next")
    assert_same(outcome(course, list(course)), alone(trial))


def refuse(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_disk_that_refuses(run, alone, monkeypatch, folder):
    """The trial goes on, and says so once a stage."""
    monkeypatch.setattr(checkpoint, "save_file", refuse)
    found = run(PID, "refused")
    assert_same(found, alone(PID))
    assert [bool(epoch.warnings) for epoch in found.epochs] == [True, False] * 3
    assert all("No space left on device" in warning for warning in found.warnings)
    assert not list(folder.glob("[!.]*/*"))
    monkeypatch.undo()
    again = run(PID, "again")
    assert_same(again, alone(PID))
    assert (again.reused, again.warnings) == (0, [])


def test_files_that_may_not_grow(run, alone):
    """The system itself refuses what safetensors writes."""
    alone(PID)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        found = run(PID, "refused")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_same(found, alone(PID))
    assert [bool(epoch.warnings) for epoch in found.epochs] == [True, False] * 3


def test_a_disk_that_refuses_for_a_while(run, alone, monkeypatch):
    """A stage of which one epoch was not saved is left to others; those after it are saved again."""
    save, calls = checkpoint.save_file, []

    def now_and_then(*arguments):
        calls.append(arguments)
        if len(calls) in (
            2,
            3,
        ):  # the optimizer of the first stage's first epoch, the weights of the second's
            refuse()
        save(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", now_and_then)
    found = run(PID, "refused")
    assert [len(epoch.warnings) for epoch in found.epochs] == [1, 0, 1, 0, 0, 0]
    monkeypatch.undo()
    again = run(PID, "again")
    assert_same(again, alone(PID))
    assert [bool(epoch.reused_from) for epoch in again.epochs] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("where", ["root", "locks", "in_use", "stage"])
def test_a_folder_that_cannot_be_made(run, alone, folder, kept, where):
    """A file is in its place."""
    if where == "root":
        folder.write_text("")
    elif where in ("locks", "in_use"):
        folder.mkdir()
        (folder / f".{where}").write_text("")
    else:
        folder.mkdir()
        (folder / saved(kept, "1", 1).parent.name).write_text("")
    found = run(PID, "refused")
    assert_same(found, alone(PID))
    assert found.warnings


def claimed(folder, name, key="stage"):
    """A stage's epochs as another process sees them that trains the first one."""
    shared = Checkpoints(folder, 20, name)
    using = shared.in_use()
    using.__enter__()
    return shared.trajectory(key, {}), using


def test_nobody_comes_back_for_a_damaged_epoch_before_it_is_whole(run, folder):
    """Its folder is there all the time; who trains it anew has the stage."""
    run(PID, "first")
    [weights] = saved(folder, "1", 1).glob("weights*")
    weights.write_bytes(b"")
    key = weights.parents[1].name
    (trains, one), (waits, two) = claimed(folder, "trains", key), claimed(folder, "waits", key)
    assert trains.look(1) is None
    busy = waits.look(1)
    assert not busy.ready()
    trains.save(1, {}, {}, {})
    assert busy.ready()
    trains.__exit__()
    for using in (one, two):
        using.__exit__(None, None, None)


def test_nobody_waits_for_what_will_not_be_saved(folder):
    (trains, one), (waits, two) = claimed(folder, "trains"), claimed(folder, "waits")
    assert trains.look(1) is None
    busy = waits.look(1)
    assert isinstance(busy, Busy)
    assert not busy.ready()
    trains.give_up()
    assert busy.ready()
    assert waits.look(1) is None, "it is theirs to train now"
    assert trains.look(2) is None, "who gave up goes on, and claims nothing"
    waits.__exit__()
    for using in (one, two):
        using.__exit__(None, None, None)


def test_time_is_theirs_who_spent_it(run):
    first = run(PID, "first").epochs
    longer = run(like(PID, epochs_per_layer=3), "second").epochs
    for epoch in first:
        assert epoch.metrics["time/epoch_s"] > 0
        assert epoch.metrics["time/evaluation_s"] > 0
        assert epoch.metrics["time/reused_s"] == 0
    for mine, theirs in zip(longer[:2], first[:2], strict=True):
        assert mine.metrics["time/epoch_s"] == mine.metrics["time/evaluation_s"] == 0
        spent = theirs.metrics["time/epoch_s"] + theirs.metrics["time/evaluation_s"]
        assert mine.metrics["time/reused_s"] == pytest.approx(spent, rel=1e-12)
    assert [epoch.reused_from for epoch in longer[:3]] == ["first", "first", ""]
    assert longer[2].metrics["time/epoch_s"] > 0
    assert longer[2].metrics["time/reused_s"] == 0
    counts = [(e.metrics["reused_epochs"], e.metrics["trained_epochs"]) for e in longer[:4]]
    assert counts == [(1, 0), (2, 0), (2, 1), (2, 2)]


def test_reused_epochs_count_without_names(data, dropping, folder):
    """Two trials that nobody gave a name are two all the same."""
    distill(PID, data, dropping, checkpoints=Checkpoints(folder, 20))
    found = distill(PID, data, dropping, checkpoints=Checkpoints(folder, 20)).metrics
    assert (found["reused_epochs"], found["trained_epochs"]) == (6, 0)
