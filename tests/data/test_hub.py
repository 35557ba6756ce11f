from __future__ import annotations

import http.server
import os
import socket
import subprocess
import sys
import threading
import time

import datasets
import numpy as np
import pytest
from huggingface_hub import constants

from ikd_ray.data import sources
from ikd_ray.tasks import TASKS, get_task
from tests.data.test_sources import refused


@pytest.fixture
def online(monkeypatch):
    """Make this process online until the test ends."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", False)
    sources._answers.cache_clear()
    yield monkeypatch
    sources._answers.cache_clear()


@pytest.fixture
def server(online):
    """Run a hub that answers every HEAD with `status`, and counts them."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status, asked = 200, 0

        def do_HEAD(self):
            type(self).asked += 1
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.server_port}")
    yield Handler
    listening.shutdown()
    listening.server_close()


def test_reachable_hub_is_asked_once_and_stays_online(server):
    assert sources.hub_reachable()
    assert sources.offline_unless_reachable()
    assert server.asked == 1
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert not constants.is_offline_mode()


@pytest.mark.parametrize(("status", "reachable"), [(307, True), (401, True), (404, True), (503, False)])
def test_statuses_that_count_as_an_answer(server, status, reachable):
    server.status = status
    assert sources.hub_reachable() is reachable


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"])
@pytest.mark.parametrize("value", ["1", "true", "YES"])
def test_offline_variables_prevent_the_request(server, online, variable, value):
    online.setenv(variable, value)
    assert not sources.hub_reachable()
    assert server.asked == 0


def test_silent_hub_costs_the_probe_once(online):
    online.setattr(sources, "PROBE_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        online.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert not sources.hub_reachable()
        assert 0.3 <= time.monotonic() - start < 2
        start = time.monotonic()
        assert not sources.hub_reachable()
        assert time.monotonic() - start < 0.1


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://hub.invalid", "not an address"])
def test_unreachable_hub_sets_imported_libraries_offline(online, endpoint):
    online.setattr(constants, "ENDPOINT", endpoint)
    assert not sources.offline_unless_reachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE
    with pytest.raises(ConnectionError):
        datasets.load_dataset("nyu-mll/no-such-set")


def run_without_hub(script: str, **variables: str) -> str:
    """Run a script in a process that finds no hub, and return its output."""
    environment = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"HF_ENDPOINT": "http://127.0.0.1:9"} | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_libraries_imported_later_are_offline():
    run_without_hub(
        "from ikd_ray.data.sources import offline_unless_reachable as reachable; assert not reachable();"
        "import datasets, transformers;"
        "assert datasets.config.HF_HUB_OFFLINE and transformers.utils.hub.is_offline_mode()"
    )


def test_first_run_without_network_is_quick_and_silent(tmp_path):
    script = (
        "import time; from ikd_ray.data.sources import load_dataset; from ikd_ray.tasks import get_task;"
        "start = time.monotonic(); data = load_dataset(get_task('cola'), None);"
        "assert data.generated; print(time.monotonic() - start)"
    )
    # About three seconds on an idle machine; the libraries' own retries would take 25.
    assert float(run_without_hub(script, HF_HOME=str(tmp_path))) < 15


def test_hugging_face_output_is_hidden_and_restored(capfd):
    before = datasets.logging.get_verbosity()
    logger = datasets.logging.get_logger("datasets.load")
    with sources._quiet_hugging_face():
        logger.warning("about the cache")
        assert datasets.are_progress_bars_disabled()
    assert "about the cache" not in capfd.readouterr().err
    assert datasets.logging.get_verbosity() == before
    assert not datasets.are_progress_bars_disabled()


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Make a local cache of the hub's data set, as `datasets` writes it, with cola, stsb and a wrong sst2."""
    text, label = datasets.Value("string"), datasets.ClassLabel
    features = {
        "cola": {"sentence": text, "label": label(names=TASKS["cola"].labels)},
        "stsb": {"sentence1": text, "sentence2": text, "label": datasets.Value("float32")},
        "sst2": {"sentence": text, "label": label(names=["positive", "negative"])},  # in the wrong order
    }

    class Glue(datasets.GeneratorBasedBuilder):
        BUILDER_CONFIGS = [datasets.BuilderConfig(name=name) for name in features]

        def _info(self):
            columns = features[self.config.name] | {"idx": datasets.Value("int32")}
            return datasets.DatasetInfo(features=datasets.Features(columns))

        def _split_generators(self, _):
            return [datasets.SplitGenerator(name=name) for name in ("train", "validation", "test")]

        def _generate_examples(self):
            for index, label in enumerate((1, 0, 1)):
                texts = {name: f"{name} {index}" for name in features[self.config.name] if name != "label"}
                yield index, texts | {"label": label, "idx": index}

    cache = tmp_path / "cache"
    datasets.disable_progress_bars()
    for name in features:
        options = {"dataset_name": "glue", "repo_id": sources.HUB_NAME, "config_name": name, "hash": "0"}
        Glue(cache_dir=str(cache), **options).download_and_prepare()
    datasets.enable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)


def test_local_cache_is_read_offline(hub_cache, capfd):
    data = sources.load_dataset(get_task("cola"), None)
    assert data.source == "hub"
    assert data.description == "Hugging Face hub's local cache nyu-mll/glue (cola, 3 train / 3 dev)"
    dev = data.splits["dev"]
    assert (dev.text, dev.text_pair) == (["sentence 0", "sentence 1", "sentence 2"], None)
    assert (dev.labels.tolist(), dev.labels.dtype) == ([1, 0, 1], np.int64)
    pairs = sources.load_dataset(get_task("stsb"), None).splits["train"]
    assert pairs.text_pair == ["sentence2 0", "sentence2 1", "sentence2 2"]
    assert pairs.labels.dtype == np.float32
    some = pairs.select(np.array([2, 0]))
    assert (some.text, some.text_pair) == (["sentence1 2", "sentence1 0"], ["sentence2 2", "sentence2 0"])
    assert some.labels.tolist() == [1.0, 1.0]
    assert capfd.readouterr() == ("", "")


def test_hub_and_folder_have_one_fingerprint(hub_cache, tmp_path):
    task = get_task("cola")
    for file in ("train.tsv", "dev.tsv"):
        (tmp_path / file).write_text("s\t1\t\tsentence 0\ns\t0\t\tsentence 1\ns\t1\t\tsentence 2\n")
    folder = sources.load_dataset(task, tmp_path)
    assert folder.fingerprint == sources.load_dataset(task, None).fingerprint


def test_hub_with_other_labels_is_refused(hub_cache, monkeypatch):
    monkeypatch.setattr(sources, "offline_unless_reachable", lambda: True)
    message = refused("sst2")
    assert "nyu-mll/glue did not load (ValueError: its labels are ('positive', 'negative')" in message
    assert "pass --data-dir" in message


def test_cache_without_the_task_is_refused(hub_cache):
    expected = "task rte: the local cache of nyu-mll/glue did not load (ValueError: Couldn't find cache for"
    assert refused("rte").startswith(expected)


def test_error_of_a_reachable_hub_is_reported(hub_cache, monkeypatch):
    monkeypatch.setattr(sources, "offline_unless_reachable", lambda: True)
    description = sources.load_dataset(get_task("cola"), None).description
    assert description.startswith("Hugging Face hub nyu-mll/glue (cola,")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", full)
    expected = "nyu-mll/glue did not load (OSError: [Errno 28] No space left on device); pass --data-dir"
    assert refused("rte").startswith(f"task rte: {expected}")


@pytest.mark.parametrize("name", [name for name in TASKS if name != "cola"])
def test_task_without_any_source_is_refused(tmp_path, monkeypatch, name, capfd):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    message = refused(name)
    assert f"task {name}: the Hugging Face hub is out of reach and its local cache empty; " in message
    assert message.endswith(f"pass --data-dir with a folder that holds {get_task(name).folder}/train.tsv")
    assert capfd.readouterr() == ("", "")
