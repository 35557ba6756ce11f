"""A teacher's name on the hub and its licence."""

from __future__ import annotations

import json

import pytest

from ikd_ray.data.sources import hub_reachable
from ikd_ray.distill import teacher_origin
from ikd_ray.distill.teacher import MINILM_HUB_NAME, find_teacher
from ikd_ray.distill.teacher_origin import TeacherOrigin, folder_origin, hub_origin
from ikd_ray.tasks import get_task
from tests.helpers.tiny_models import write_teacher

CARD = """\
---
license: other
license_name: own
license_link: LICENSE
base_model: something/else
---
# A teacher
"""


def test_the_bundled_teacher_is_known():
    source = find_teacher(None, get_task("cola"))
    assert source.origin == TeacherOrigin(MINILM_HUB_NAME, {"license": "apache-2.0"})


def test_a_folder_is_named_by_its_last_part_and_has_the_licence_of_its_card(tmp_path):
    folder = write_teacher(tmp_path / "ann" / "my-teacher")
    (folder / "README.md").write_text(CARD)
    source = find_teacher(str(folder), get_task("cola"))
    assert (source.name, source.path) == ("my-teacher", str(folder))
    licence = {"license": "other", "license_name": "own", "license_link": "LICENSE"}
    assert source.origin == TeacherOrigin("", licence)


@pytest.mark.parametrize(
    "card",
    [
        None,
        "",
        "no metadata",
        "---\nlicense: [a, b]\n---\n",
        "---\n- a\n---\n",
        "---\n{: :\n---\n",
        b"\xff\xfe",
    ],
)
def test_a_card_may_be_anything(tmp_path, card):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    assert folder_origin(tmp_path) == TeacherOrigin()


@pytest.mark.parametrize(
    ("noted", "known"),
    [
        ("google-bert/bert-base-uncased", True),
        ("bert-base-uncased", True),
        ("xlm-roberta-base", True),
        ("my-model", False),
        ("bert-base-uncased-finetuned", False),
        ("outputs/best", False),
        ("run7/checkpoint-500", False),
        ("/home/ann/model", False),
        ("../model", False),
        ("here/now", False),
        ("", False),
        (None, False),
        (7, False),
    ],
)
def test_what_transformers_noted_is_a_name_on_the_hub_or_a_folders(tmp_path, monkeypatch, noted, known):
    (tmp_path / "here" / "now").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_name_or_path": noted}))
    assert folder_origin(tmp_path).hub_name == (noted if known else "")


def test_the_licence_of_a_teacher_on_the_hub_is_in_the_cache(tmp_path, monkeypatch):
    assert not hub_reachable()
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    asked = []

    def cached(*given):
        asked.append(given)
        return str(tmp_path / "README.md")

    monkeypatch.setattr(teacher_origin, "try_to_load_from_cache", cached)
    assert hub_origin("org/model", False) == TeacherOrigin("org/model", {"license": "mit"})
    assert asked == [("org/model", "README.md")]
    monkeypatch.setattr(teacher_origin, "try_to_load_from_cache", lambda *_: None)
    assert hub_origin("org/model", False) == TeacherOrigin("org/model")
