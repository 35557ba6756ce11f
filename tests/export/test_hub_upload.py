"""`--push-to-hub`, with a server on this machine that answers as the hub does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.helpers.hub_server import HubServer, hub_server
from tests.helpers.sample_students import SMALL_EXPORT, file_contents, make_student_sweep

TOKEN = "hf_" + "Secret" * 5
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory) -> Path:
    """Return an output folder to read; never change it."""
    return make_student_sweep(tmp_path_factory.mktemp("sample") / "outputs").parent


@pytest.fixture
def server() -> Iterator[HubServer]:
    with hub_server("ann", TOKEN) as running:
        yield running


@pytest.fixture
def push(command, outputs, tmp_path, server):
    """`push("ann/judge", "--pick", "best")`: the result of an export in a process of its own, and all it printed.

    The process asks the stand-in, without the user's token; keywords are variables of its environment.
    """

    def run(repository: str, *flags: str, status: int = 0, **variables: str):
        here = {"HF_ENDPOINT": server.uri, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}
        here |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
        arguments = ("--task", "cola", "--output", outputs, "--to", tmp_path / "exports", *flags)
        done = command(
            "export",
            *arguments,
            "--push-to-hub",
            repository,
            cwd=tmp_path,
            status=status,
            **here | variables,
        )
        assert TOKEN not in done.stdout + done.stderr
        return done

    return run


def refusal(done, tmp_path: Path) -> str:
    """Return the one line with which nothing was written."""
    assert done.stdout == ""
    assert not (tmp_path / "exports").exists()
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("repository", ["ann/judge", "judge"])
def test_a_student_is_pushed_as_it_was_exported(push, server, tmp_path, repository):
    done = push(repository, "--pick", "aaaa1111")
    assert f"pushed to {server.uri}/ann/judge" in done.stdout
    folder = tmp_path / "exports" / SMALL_EXPORT
    assert server.repositories == {"ann/judge": file_contents(folder)}
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "judge"
    assert 'pipeline("text-classification", "ann/judge"' in card.text


def test_the_next_student_takes_the_place_of_the_earlier_one(push, server, tmp_path):
    server.repositories["ann/judge"] = {"onnx/model.onnx": b"of the earlier one", "notes.md": b"mine"}
    push("ann/judge", "--pick", "aaaa1111")
    exported = file_contents(tmp_path / "exports" / SMALL_EXPORT)
    assert server.repositories["ann/judge"] == exported | {"notes.md": b"mine"}
    assert server.commits == 1


def test_without_a_token_nothing_is_computed_or_asked(push, server, tmp_path):
    line = refusal(push("ann/judge", "--pick", "best", status=2, HF_TOKEN=""), tmp_path)
    assert line.startswith(
        "error: --push-to-hub ann/judge: no token of the Hugging Face hub; run `hf auth login`"
    )
    assert server.requests == []


def test_offline_the_hub_is_not_asked(push, server, tmp_path):
    line = refusal(push("ann/judge", "--pick", "best", status=2, **OFFLINE), tmp_path)
    assert "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE keeps the hub from being asked; unset it" in line
    assert server.requests == []


def test_a_hub_that_does_not_know_the_token_or_does_not_answer_is_named(push, server, tmp_path):
    server.token = "another"
    line = refusal(push("ann/judge", "--pick", "best", status=2), tmp_path)
    assert f"{server.uri} does not know the token" in line
    line = refusal(push("ann/judge", "--pick", "best", status=2, HF_ENDPOINT="http://127.0.0.1:9"), tmp_path)
    assert "http://127.0.0.1:9 is out of reach" in line
    assert server.commits == 0


def test_a_repository_holds_one_student(push, server, tmp_path):
    line = refusal(push("ann/judge", status=2), tmp_path)
    assert "a repository holds one student, the front has 2; choose one with --pick" in line
    assert server.repositories == {}


def test_a_token_that_may_not_write_leaves_the_exported_folder(push, server, tmp_path):
    server.read_only = True
    done = push("ann/judge", "--pick", "aaaa1111", status=1)
    (line,) = done.stderr.splitlines()
    folder = tmp_path / "exports" / SMALL_EXPORT
    assert "You need write access. Token: ***" in line
    assert line.endswith(f"{folder} is complete, and `hf upload ann/judge {folder}` uploads it")
    assert (folder / "README.md").is_file()
