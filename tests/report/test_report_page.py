"""The report as a page, as files, in MLflow, and from the command line."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import mlflow
import pytest

from ikd_ray.analysis.sweep_analysis import open_analysis
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.records import read_sweep, read_trials, write_sweep
from ikd_ray.report.figures import costs, front, regimes
from ikd_ray.report.page import TERMS, render
from ikd_ray.report.report import make_report
from ikd_ray.storage.remote import SharedStorage, open_storage
from ikd_ray.sweep.sync import SweepSync
from ikd_ray.tracking.publish import log_report
from ikd_ray.tracking.tracker import Tracker
from tests.helpers.sample_sweep import make_sweep
from tests.helpers.terminal import invoke

HOSTILE = '<script>alert(1)</script><a href="http://evil.example">&"\'$\\frac{\x1b[31m%{x}'


class Tags(HTMLParser):
    """What a page has: its tags with attributes, and the text of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = [tag] if tag in ("script", "style") else []

    def handle_endtag(self, tag):
        self._inside = []

    def handle_data(self, data):
        if not self._inside:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("report")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The output folder with a sweep of twelve trials, and the files of its report."""
    output = tmp_path_factory.mktemp("page") / "outputs"
    sweep = make_sweep(output, trials=12, generated=True)
    return output, make_report(SharedStorage(str(output)), sweep)


def test_the_page_has_everything_in_it(made):
    output, files = made
    page = Tags(files[0].read_text())
    images = {attributes["src"] for tag, attributes in page.tags if tag == "img"}
    shown = {base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in images}
    assert shown == {file.read_bytes() for file in files[1:]}
    assert all(attributes["alt"] for tag, attributes in page.tags if tag == "img")
    sweep = read_sweep(output / "first")
    for words in (
        GENERATED_WARNING,
        sweep.command,
        sweep.code_version,
        "made up",
        "mini, 4 layers; dev/mcc 0.41",
        *TERMS,
    ):
        assert words in page.text
    best = open_analysis(output / "first").best
    assert f"{best.metrics['dev/mcc']:.3f}" in page.text


def test_nothing_is_asked_of_any_host(made):
    _, files = made
    page = Tags(files[0].read_text())
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
        assert tag not in ("link", "iframe", "object", "embed", "base")
    (policy,) = [
        a["content"]
        for tag, a in page.tags
        if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_plotly_is_there_once(made):
    text = made[1][0].read_text()
    assert text.count("plotly.js v") == 1
    assert len(re.findall(r"Plotly\.newPlot\(", text.split("</head>")[1])) == 3


def test_hostile_names_are_text(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=3, weights=False, command=HOSTILE)
    record = read_sweep(sweep)
    record.teacher["name"], record.data["description"] = HOSTILE, HOSTILE
    subject = open_analysis(sweep)
    subject = type(subject)(**vars(subject) | {"sweep": record})
    text = render(subject, [front.section(subject, {"student/params": 9e4}), regimes.section(subject)])
    body = text.split("</head>")[1]
    page = Tags(body)
    assert not [a for tag, a in page.tags if tag == "a" and not a["href"].startswith("#")]
    assert body.count("<script") == body.count("</script>")
    assert "alert(1)</script>" not in body
    assert "<script>alert(1)</script>" in page.text  # as words
    assert "\x1b" not in text
    # In plotly's own kind of HTML, too.
    plot = front.plot(subject, {"student/params": 9e4})
    (star,) = {trace.text[0] for trace in plot.data if trace.name == "teacher"}
    assert "<script" not in star
    assert "<a " not in star


def test_a_page_without_interactive_figures_has_no_script(tmp_path):
    subject = open_analysis(make_sweep(tmp_path / "outputs", trials=3, weights=False))
    text = render(subject, [costs.section(subject)])
    assert "<script" not in text
    assert len(text) < 2e6


def test_a_second_report_replaces_the_first_and_leaves_what_is_not_its_own(tmp_path):
    output = SharedStorage(str(tmp_path / "outputs"))
    sweep = make_sweep(tmp_path / "outputs", trials=4)
    told: list[str] = []
    before = make_report(output, sweep, tell=told.append)
    assert len(told) == 1 + len(open_analysis(sweep).closely)  # the teacher's predictions, and theirs
    (sweep / "report" / "notes.txt").write_text("mine")
    (sweep / "report" / "old.png").write_text("mine, too")
    assert before[-1].name in json.loads((sweep / "report" / "manifest.json").read_text())
    told.clear()
    after = make_report(output, sweep, ["w1 w2"], told.append)
    assert told == []  # predictions are kept
    assert {file.name for file in (sweep / "report").iterdir()} >= {"notes.txt", "old.png", "report.html"}
    assert (sweep / "report" / "notes.txt").read_text() == "mine"
    assert "a given text: “[CLS] w1 w2 [SEP]”" in after[0].read_text()
    assert not list(sweep.glob(".report.*/")) + list(sweep.glob("tmp*"))


def test_what_an_earlier_report_alone_had_goes(tmp_path):
    output = SharedStorage(str(tmp_path / "outputs"))
    sweep = make_sweep(tmp_path / "outputs", trials=12)
    make_report(output, sweep)
    assert (sweep / "report" / "importances.png").exists()
    (sweep / "study.db").unlink()
    make_report(output, sweep)
    assert not (sweep / "report" / "importances.png").exists()
    assert "study is not there any more" in (sweep / "report" / "report.html").read_text()


def test_weights_that_are_gone_leave_the_rest(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=4, weights=False)
    files = make_report(SharedStorage(str(tmp_path / "outputs")), sweep)
    text = Tags(files[0].read_text()).text
    assert "The tokenized dev set is not there any more" in text
    assert "What it cost, and what sharing saved" in text
    assert {file.name for file in files} >= {"pareto.png", "regimes.png", "depth.png", "costs.png"}


# MLflow


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """An output folder with a sweep that has its runs in a store, the store, and the sweep's run."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    output = tmp_path / "outputs"
    sweep = make_sweep(output, trials=3, settings={"id": "5eed", "tracking_uri": uri, "space": "s.yaml"})
    tracker = Tracker(uri, "cola")
    tracker.start_sweep(read_sweep(sweep))
    tracker.finish_sweep(sweep, read_sweep(sweep), read_trials(sweep))
    return output, uri, tracker.parent_run_id


def test_the_files_go_to_the_sweep_s_run(tracked, app):
    output, uri, parent = tracked
    result = invoke(app, "--task", "cola", "--output", output)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    page = output / "first" / "report" / "report.html"
    assert f"report: {page}\n" in result.stdout
    client = mlflow.MlflowClient(uri)
    names = {artifact.path for artifact in client.list_artifacts(parent, "report")}
    assert names == {
        f"report/{file.name}" for file in page.parent.iterdir() if file.suffix in (".html", ".png")
    }
    assert client.get_run(parent).info.status == "FINISHED"


def test_a_store_that_does_not_know_the_sweep_is_a_warning(tracked, app, tmp_path):
    output, _, _ = tracked
    other = f"sqlite:///{tmp_path / 'other.db'}"
    result = invoke(app, "--task", "cola", "--output", output, "--tracking-uri", other)
    assert result.exit_code == 0
    assert result.stderr == "warning: the report is not in MLflow: no run of sweep first there\n"


def test_a_store_that_is_away_is_a_warning_without_its_password(tracked):
    output, _, _ = tracked
    sweep = read_sweep(output / "first")
    told = log_report(sweep, [], "http://user:geheim7@127.0.0.1:9/")
    assert told.startswith("--tracking-uri http://")
    assert "no MLflow store there" in told
    assert "geheim7" not in told


# The command line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "give --task TASK to draw a sweep, or --check NAME to check one"),
        (["--task", "cola", "--check", "first"], "give --task TASK to draw a sweep, or --check NAME"),
        (["--check", "first", "--name", "first"], "--check takes neither --name nor --sentence"),
        (["--check", "first", "--sentence", "x"], "--check takes neither --name nor --sentence"),
        (["--task", "colla"], "task 'colla' is not known"),
        (["--task", "rte"], "no sweep of rte there"),
        (["--task", "cola", "--name", "none"], "no sweep there"),
        (["--task", "cola", "--name", "../x"], "not a path"),
        (
            ["--task", "cola", "--sentence", "a", "--sentence", "b"],
            "is one sentence: give --sentence once (got 2)",
        ),
        (["--task", "cola", "--sentence", ""], "there is nothing in it"),
        (["--task", "cola", "--name", "begun"], "no trial of it has finished"),
        (["--task", "cola", "--name", "damaged"], "trial.json: cannot be read"),
        (["--task", "cola", "--name", "strange"], "trial.json of t000: regime: "),
    ],
)
def test_mistakes_get_one_line_and_nothing_is_written(tmp_path, app, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "outputs"
    for name in ("begun", "damaged", "strange", "first"):
        make_sweep(output, trials=0 if name == "begun" else 2, weights=False, name=name)
    (output / "damaged" / "trials" / "t000" / "trial.json").write_text("{")
    file = output / "strange" / "trials" / "t000" / "trial.json"
    file.write_text(file.read_text().replace('"kd"', '"\\u001b[31mkd"'))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    result = invoke(app, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.isprintable()
    assert told in line
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_store_whose_password_is_not_kept_is_asked_for_first(tmp_path, app, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_sweep(tmp_path / "outputs", trials=2, weights=False, settings={"store": "postgresql://u@h/d"})
    result = invoke(app, "--task", "cola", "--output", tmp_path / "outputs")
    assert result.exit_code == 2
    assert "set MLFLOW_TRACKING_URI again" in result.stderr
    assert not (tmp_path / "outputs" / "first" / "report").exists()


def test_the_newest_sweep_with_a_finished_trial_is_drawn(tmp_path, app):
    output = tmp_path / "outputs"
    for name in ("older", "newer"):
        make_sweep(output, trials=2, weights=False, name=name)
        write_sweep(output / name, read_sweep(output / name))
    make_sweep(output, trials=0, weights=False, name="begun")
    result = invoke(
        app, "--task", "cola", "--output", output, "--tracking-uri", f"sqlite:///{tmp_path / 'm.db'}"
    )
    assert result.exit_code == 0, result.output
    assert f"report: {output / 'newer' / 'report' / 'report.html'}" in result.stdout
    assert not (output / "older" / "report").exists()


def test_a_report_of_a_sweep_at_a_uri(tmp_path, app, s3, monkeypatch):
    """The students come from there, and the report goes there."""
    monkeypatch.setenv("HOME", str(tmp_path / "driver"))
    place = open_storage(s3)
    sweep = make_sweep(place.folder, trials=3)
    SweepSync(place, sweep, pytest.fail).push()
    for folder in (place.folder / "cache").glob("*/[!.]*"):
        place.upload(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "reader"))
    result = invoke(app, "--task", "cola", "--output", s3, "--tracking-uri", f"sqlite:///{tmp_path / 'm.db'}")
    assert result.exit_code == 0, result.output
    page = place.folder / "first" / "report" / "report.html"  # in the reader's home
    assert page.is_relative_to(tmp_path / "reader")
    assert "Student layer 1 beside teacher layer" in page.read_text()
    assert set(place.list_names(page.parent)) >= {"report.html", "pareto.png", "errors.png"}
