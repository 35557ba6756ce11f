"""The study on disk, in folders of any name."""

from __future__ import annotations

import pytest

from ikd_ray.records import STUDY_FILE
from ikd_ray.search.study import Outcome, Sample, StudyWriter, TrialState, open_database


@pytest.mark.parametrize("name", ["what?", "a?mode=memory", "50%20x", "a#b&c", "{x}", "a b", "ü", "file:x"])
def test_the_study_is_in_its_folder_whatever_the_name(tmp_path, name):
    sweep = tmp_path / name / "sweep"
    sweep.mkdir(parents=True)
    writer = StudyWriter(sweep, {"dev/mcc": "max"}, [""])
    writer.append("", Sample({}, {}))
    writer.tell(0, Outcome(TrialState.COMPLETE, [0.5]))
    assert len(StudyWriter(sweep, {"dev/mcc": "max"}, [""]).read_samples()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [sweep / STUDY_FILE]
    assert len(open_database(sweep / STUDY_FILE).get_all_studies()) == 1
