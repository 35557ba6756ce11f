"""The report as a page, as files, in MLflow, and from the command line."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

import mlflow
import pytest

from ikd_ray.analysis.sweep_analysis import open_analysis
from ikd_ray.formatting import GENERATED_WARNING
from ikd_ray.records import read_sweep, read_trials, write_sweep
from ikd_ray.report import report
from ikd_ray.report.components import Picture, Section
from ikd_ray.report.page import render
from ikd_ray.report.sections.front import front_section, verdict_section
from ikd_ray.report.sections.regimes import regimes_section
from ikd_ray.report.sections.trials import trials_section
from ikd_ray.report.style import new_figure
from ikd_ray.report.svg import to_svg
from ikd_ray.storage.remote import open_storage
from ikd_ray.sweep.sync import SweepSync
from ikd_ray.tracking.tracker import Tracker, log_report
from tests.helpers.sample_sweep import make_sweep, report_on
from tests.helpers.terminal import invoke, usage_error

HOSTILE = '<script>alert(1)</script><a href="http://evil.example">&"\'$\\frac{\x1b[31m%{x}'


class Page(HTMLParser):
    """A page's tags with their attributes, and the text of its elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._texts: list[str] = []
        self._is_code = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._is_code = tag in ("script", "style")

    def handle_endtag(self, tag):
        self._is_code = False

    def handle_data(self, data):
        if not self._is_code:
            self._texts.append(data)

    def attributes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self._texts).split())


@pytest.fixture(scope="module")
def app(command_line):
    return command_line("report")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return a sweep of ten trials and the files of its report, the page first; read only."""
    sweep = make_sweep(tmp_path_factory.mktemp("page") / "outputs", trials=10, generated=True)
    return sweep, list(report_on(sweep).values())


def test_the_page_is_complete(written):
    sweep, files = written
    page, record = Page(files[0].read_text()), read_sweep(sweep)
    shown = {about["id"] for about in page.attributes("figure") if "id" in about}
    assert shown == {f"figure-{file.stem}" for file in files[1:]}
    views = [about for about in page.attributes("div") if about.get("class") == "view"]
    assert len(views) == len(shown) + 2  # the front against three costs
    assert all(about["role"] in ("img", "group") and about["aria-label"] for about in views)
    teacher = "mini, 4 layers; dev/mcc 0.41"
    terms = ("kd (regime)", "mcc", "Pareto front", "attention KL", "[CLS] cosine", "agreement", "latency")
    for text in (GENERATED_WARNING, record.command, record.code_version, "made up", teacher, *terms):
        assert text in page.text
    assert f"{open_analysis(sweep).best.metrics['dev/mcc']:.3f}" in page.text


def test_the_page_needs_no_network(written):
    page = Page(written[1][0].read_text())
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png", "#")), (tag, name, value[:80])
        assert tag not in ("link", "iframe", "object", "embed", "base")
    (policy,) = [
        a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_only_the_page_s_own_script_may_run(written):
    text = written[1][0].read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not re.search(r"<[^>]*\son\w+=", text)  # no handlers in attributes


def test_a_report_is_small_enough_to_be_sent(written):
    assert written[1][0].stat().st_size < 2e6


def test_ids_are_unique_and_links_lead_somewhere(written):
    page = Page(written[1][0].read_text())
    ids = [about["id"] for _, about in page.tags if "id" in about]
    assert len(ids) == len(set(ids))
    links = {about["href"] for tag, about in page.tags if tag in ("a", "use")}
    assert len(links) > 30
    assert {link[1:] for link in links} <= {*ids}


def test_every_trial_has_a_row_and_headings_are_marked(written):
    sweep, files = written
    page = Page(files[0].read_text())
    rows = {about["id"] for about in page.attributes("tr") if "id" in about}
    assert rows == {f"trial-{trial.number}" for trial in read_trials(sweep)}
    assert all(about.get("scope") in ("col", "row", "rowgroup") for about in page.attributes("th"))


def test_the_page_says_how_many_texts_are_in_it(written):
    text = Page(written[1][0].read_text()).text
    found = re.search(r"This page contains the texts of (\d+) dev examples: if they are private", text)
    shown = re.findall(r"dev example (\d+)", text) + re.findall(r"example (\d+) of the dev set", text)
    assert int(found[1]) == len({*shown}) > 5


def test_a_dark_page_has_a_colour_for_each_of_the_figures(written):
    text = written[1][0].read_text()
    used = set(re.findall(r"var\((--c[0-9a-f]{6}),", text))
    assert "--c1f2430" in used
    (dark,) = re.findall(r"prefers-color-scheme: dark\) \{ :root \{ (--c.*?) \} \}", text)
    assert {line.partition(":")[0].strip() for line in dark.split(";") if line.strip()} == used


def test_hostile_names_are_text(tmp_path):
    analysis = open_analysis(make_sweep(tmp_path / "outputs", trials=3, weights=False, command=HOSTILE))
    analysis.sweep.teacher["name"], analysis.sweep.data["description"] = HOSTILE, HOSTILE
    front = front_section(analysis.with_teacher_sizes({"student/params": 9e4}))
    text = render(
        analysis, [verdict_section(analysis), front, trials_section(analysis), regimes_section(analysis)]
    )
    body = text.split("</head>")[1]
    page = Page(body)
    assert all(link["href"].startswith("#") for link in page.attributes("a"))
    assert body.count("<script") == body.count("</script>")
    assert "alert(1)</script>" not in body
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "\x1b" not in text
    assert "evil.example" in page.text


def test_hostile_texts_in_figures_are_text():
    figure = new_figure(4, 3)
    axes = figure.subplots()
    axes.set_title(HOSTILE)
    axes.scatter([0], [0]).set_urls(["#trial-0"])
    text = to_svg(figure, "hostile", {"#trial-0": HOSTILE})
    page = Page(text)
    assert not page.attributes("script")
    assert [link["href"] for link in page.attributes("a")] == ["#trial-0"]
    assert page.text.count("evil.example") == 2  # the figure's title and the link's


def test_a_second_report_replaces_the_first_and_keeps_foreign_files(tmp_path):
    sweep = make_sweep(tmp_path / "outputs", trials=2)
    messages: list[str] = []
    first = report_on(sweep, notify=messages.append)
    assert len(messages) == 1 + len(
        open_analysis(sweep).highlighted
    )  # predictions of the teacher, and theirs
    assert first.keys() <= json.loads((sweep / "report" / "manifest.json").read_text()).keys()
    (sweep / "report" / "notes.txt").write_text("mine")
    (sweep / "report" / "old.png").write_text("mine, too")
    messages.clear()
    second = report_on(sweep, ["w1 w2"], messages.append)
    assert messages == []  # predictions are cached
    assert {file.name for file in (sweep / "report").iterdir()} >= {"notes.txt", "old.png", "report.html"}
    assert (sweep / "report" / "notes.txt").read_text() == "mine"
    assert "a given text: “[CLS] w1 w2 [SEP]”" in second["report.html"].read_text()
    assert not list(sweep.glob(".report.*/")) + list(sweep.glob("tmp*"))


def test_files_that_only_an_earlier_report_had_are_deleted(tmp_path, monkeypatch):
    sweep = make_sweep(tmp_path / "outputs", trials=1, weights=False)
    picture = Picture("importances", "title", "caption", "alt", [], b"png")
    for parts in ([picture], []):
        monkeypatch.setattr(
            report, "_sections", lambda *_, shown=parts: [Section("search", "Search", [], shown)]
        )
        report_on(sweep)
        assert (sweep / "report" / "importances.png").exists() == bool(parts)


def test_without_weights_the_other_sections_are_drawn(tmp_path):
    files = report_on(make_sweep(tmp_path / "outputs", trials=4, weights=False))
    text = Page(files["report.html"].read_text()).text
    assert "The tokenized dev set is not there any more" in text
    assert "What it cost, and what sharing saved" in text
    assert files.keys() >= {"pareto.png", "regimes.png", "depth.png", "costs.png"}
    assert {file.suffix for file in files.values()} == {".html", ".png"}  # nothing is compared


# MLflow


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """Return an output folder with a sweep that is in an MLflow store, the store's URI, and the sweep's run."""
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    output = tmp_path / "outputs"
    sweep = make_sweep(
        output, trials=2, weights=False, settings={"id": "5eed", "tracking_uri": uri, "space": "s.yaml"}
    )
    tracker = Tracker(uri, "cola")
    tracker.start_sweep(read_sweep(sweep))
    tracker.finish_sweep(sweep, read_sweep(sweep), read_trials(sweep))
    return output, uri, tracker.parent_run_id


def test_the_files_are_logged_to_the_sweep_s_run(tracked, app):
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


def test_an_unreachable_store_is_a_warning_without_its_password(tracked):
    output, _, _ = tracked
    sweep = read_sweep(output / "first")
    problem = log_report(sweep, [], "http://user:geheim7@127.0.0.1:9/")
    assert problem.startswith("--tracking-uri http://")
    assert "no MLflow store there" in problem
    assert "geheim7" not in problem


# The command line


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """Return an output folder with a sweep without trials, two with a bad record, and a good one; read only."""
    output = tmp_path_factory.mktemp("usage") / "outputs"
    for name in ("begun", "damaged", "strange", "first"):
        make_sweep(output, trials=0 if name == "begun" else 1, weights=False, name=name)
    (output / "damaged" / "trials" / "t000" / "trial.json").write_text("{")
    file = output / "strange" / "trials" / "t000" / "trial.json"
    file.write_text(file.read_text().replace('"kd"', '"\\u001b[31mkd"'))
    return output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --task TASK to draw a sweep, or --check NAME to check one"),
        (["--task", "cola", "--check", "first"], "give --task TASK to draw a sweep, or --check NAME"),
        (["--check", "first", "--name", "first"], "--check takes neither --name nor --sentence"),
        (["--check", "first", "--sentence", "x"], "--check takes neither --name nor --sentence"),
        (["--task", "colla"], "task 'colla' is not known"),
        (["--task", "rte"], "no sweep of rte there"),
        (["--task", "cola", "--name", "none"], "no sweep there"),
        (["--task", "cola", "--name", "../x"], "not a path"),
        (["--task", "cola", "--sentence", ""], "there is nothing in it"),
        (["--task", "cola", "--name", "begun"], "no trial of it has finished"),
        (["--task", "cola", "--name", "damaged"], "trial.json: cannot be read"),
        (["--task", "cola", "--name", "strange"], "trial.json of t000: regime: "),
    ],
)
def test_a_usage_error_is_one_line_and_nothing_is_written(sweeps, app, monkeypatch, arguments, message):
    monkeypatch.chdir(sweeps.parent)
    before = {path: path.stat().st_mtime_ns for path in sweeps.parent.rglob("*")}
    assert message in usage_error(invoke(app, *arguments))
    assert {path: path.stat().st_mtime_ns for path in sweeps.parent.rglob("*")} == before


def test_a_store_whose_password_is_not_stored_is_asked_for_first(tmp_path, app, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    make_sweep(tmp_path / "outputs", trials=1, weights=False, settings={"store": "postgresql://u@h/d"})
    result = invoke(app, "--task", "cola", "--output", tmp_path / "outputs")
    assert "set MLFLOW_TRACKING_URI again" in usage_error(result)
    assert not (tmp_path / "outputs" / "first" / "report").exists()


def test_the_newest_sweep_with_a_finished_trial_is_drawn(tmp_path, app):
    output = tmp_path / "outputs"
    for name in ("older", "newer"):
        make_sweep(output, trials=1, weights=False, name=name)
        write_sweep(output / name, read_sweep(output / name))
    make_sweep(output, trials=0, weights=False, name="begun")
    store = f"sqlite:///{tmp_path / 'm.db'}"
    result = invoke(app, "--task", "cola", "--output", output, "--tracking-uri", store)
    assert result.exit_code == 0, result.output
    assert result.stderr == "warning: the report is not in MLflow: no run of sweep newer there\n"
    assert f"report: {output / 'newer' / 'report' / 'report.html'}" in result.stdout
    assert not (output / "older" / "report").exists()


def test_students_come_from_a_uri_and_the_report_goes_there(tmp_path, app, s3, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "driver"))
    place = open_storage(s3)
    sweep = make_sweep(place.folder, trials=1)
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
