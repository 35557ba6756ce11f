"""Memory for reading, tokenizing and building targets as a data set grows.

    PYTHONPATH=. python tests/distill/test_targets_scale.py prepare FOLDER 364000
    PYTHONPATH=. python tests/distill/test_targets_scale.py build FOLDER 5000

measure larger sizes than the tests. The second command reads the output of the first one in FOLDER.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

GIB = 2**30
LIMIT = 3 * GIB  # for a process that builds targets
MAX_LENGTH = 128

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.path.exists("/proc/self/clear_refs"), reason="reads Linux's accounts of memory"
    ),
]


def resident() -> dict[str, int]:
    """Return bytes of memory: the peak so far, and the anonymous memory now, which the kernel cannot drop."""
    pairs = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    found = {fields[0]: int(fields[1]) * 1024 for fields in pairs if fields[0] in ("VmHWM:", "RssAnon:")}
    return {"peak": found["VmHWM:"], "anonymous": found["RssAnon:"]}


@contextmanager
def measured(report: dict, name: str) -> Iterator[None]:
    """Add a phase's seconds and its highest resident and anonymous memory, in bytes, to a report."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    highest, over, start = [resident()["anonymous"]], threading.Event(), time.perf_counter()

    def watch() -> None:
        while not over.wait(0.01):
            highest.append(resident()["anonymous"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        seconds = time.perf_counter() - start
        report[name] = {"seconds": seconds, "peak": resident()["peak"], "anonymous": max(highest)}


def write_qqp(folder: Path, words: list[str], pairs: int) -> None:
    """Write generated pairs as long as QQP's: about 30 tokens each, some of them hundreds."""
    rng = np.random.default_rng(0)
    (folder / "QQP").mkdir(parents=True)
    for name, count in (("train", pairs), ("dev", pairs // 9)):
        with open(folder / "QQP" / f"{name}.tsv", "w") as file:
            file.write("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n")
            sizes = np.clip(rng.lognormal(2.45, 0.55, (count, 2)).astype(int), 3, 230)
            for number, (first, second) in enumerate(sizes.tolist()):
                text = [words[i] for i in rng.integers(0, len(words), first + second)]
                one, two = " ".join(text[:first]), " ".join(text[first:])
                file.write(f"{number}\t{2 * number}\t{2 * number + 1}\t{one} ?\t{two} ?\t{number % 2}\n")


def prepare_all(folder: Path, pairs: int) -> dict:
    """Read and tokenize a data set, as a sweep's own process does."""
    from ikd_ray.data.sources import load_dataset
    from ikd_ray.data.tokens import tokenize
    from ikd_ray.distill.teacher import find_teacher, load_tokenizer
    from ikd_ray.tasks import get_task

    report: dict = {}
    task = get_task("qqp")
    source = find_teacher(None, task)
    tokenizer = load_tokenizer(source)
    words = [word for word in tokenizer.get_vocab() if word.isalpha() and len(word) < 9]
    write_qqp(folder / "glue", sorted(words), pairs)
    with measured(report, "nothing"):
        pass
    with measured(report, "read"):
        dataset = load_dataset(task, folder / "glue")
    with measured(report, "tokenize"):
        data = tokenize(dataset, tokenizer, source.key, MAX_LENGTH, folder / "tokens")
    report["tokens"] = float(data.train.lengths.mean())
    return report


def build_some(folder: Path, examples: int) -> dict:
    """Build targets for the longest examples and as many others, as a sweep's preparing task does."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from ikd_ray.data.tokens import RaggedArray, TaskData, TokenSplit, open_data, row_offsets
    from ikd_ray.distill.encoder import Encoder
    from ikd_ray.distill.targets import build_targets

    report: dict = {}
    torch.set_num_threads(1)
    whole = open_data(next((folder / "tokens").glob("[0-9a-f]*")))
    train = whole.train
    rows = np.argsort(train.lengths, kind="stable")[::-1].copy()
    rows = np.concatenate([rows[:256], np.random.default_rng(0).permutation(rows[256:])])[:examples]
    spans = zip(train.input_ids.offsets[rows], train.input_ids.offsets[rows + 1], strict=True)
    pick = [train.input_ids.values[start:end] for start, end in spans]
    ids = RaggedArray(np.concatenate(pick), row_offsets(train.lengths[rows]))
    split = TokenSplit(ids, RaggedArray(np.zeros_like(ids.values, np.uint8), ids.offsets), train.labels[rows])
    data = TaskData(whole.task, {"train": split}, whole.pad_id, whole.key, whole.folder, whole.key)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    teacher = Encoder(BertForSequenceClassification(config).eval())
    with measured(report, "nothing"):
        pass
    with measured(report, "build"):
        for _ in build_targets(folder / f"targets-{examples}", data, teacher, range(1, 7), True):
            pass
    report["longest"] = int(split.lengths.max())
    report["stored"] = sum(path.stat().st_size for path in (folder / f"targets-{examples}").rglob("*.npy"))
    return report


def run(job: str, folder: Path, size: int) -> dict:
    """Run a job in a process of its own, whose memory is measured."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, __file__, job, str(folder), str(size)],
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> dict[int, tuple[Path, dict]]:
    """Return by number of pairs the folder of a generated set and the memory for its preparation."""
    folders = {pairs: tmp_path_factory.mktemp(str(pairs)) for pairs in (20_000, 60_000)}
    return {pairs: (folder, run("prepare", folder, pairs)) for pairs, folder in folders.items()}


def test_a_set_of_qqps_size_can_be_read_and_tokenized(prepared):
    (_, less), (_, more) = prepared[20_000], prepared[60_000]
    assert 25 < more["tokens"] < 35
    for phase in ("read", "tokenize"):
        per_pair = (more[phase]["peak"] - less[phase]["peak"]) / 40_000
        assert per_pair < 2048, phase
        assert more[phase]["peak"] + 304_000 * max(per_pair, 0) < LIMIT / 2, phase


def test_building_takes_as_much_memory_for_many_examples_as_for_few(prepared):
    """The few examples include the longest ones, whose steps are the largest."""
    folder, _ = prepared[60_000]
    few, many = (run("build", folder, examples) for examples in (256, 640))
    assert many["longest"] == few["longest"] == MAX_LENGTH
    assert many["stored"] > 1.1 * few["stored"]
    assert many["build"]["peak"] < LIMIT / 2
    # The allocator's own needs differ by 0.1 GiB between runs.
    assert many["build"]["anonymous"] < few["build"]["anonymous"] + 0.2 * GIB


if __name__ == "__main__":
    found = {"prepare": prepare_all, "build": build_some}[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps(found))
