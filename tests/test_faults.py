"Every known way to be wrong is answered: no traceback, one sentence that names the file, check and the run agree."

import shutil
from collections import Counter
from pathlib import Path

import pytest

from faults import FAULTS, HOSTILE, judge, sound_folder
from wegformer.check import check


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return sound_folder(tmp_path_factory.mktemp("sound") / "voc")


def test_the_sound_folder_is_sound(sound):
    for workers in (0, 2):
        report = check(sound, splits=("train", "val"), deep=True, workers=workers)
        assert report.ready and not report.findings and report.classes["val: masks"]["dog"] == 2


def test_faults_are_many_and_their_names_differ():
    assert len(FAULTS) >= 150 and max(Counter((f.area, f.name) for f in FAULTS).values()) == 1
    assert Counter(f.answer for f in FAULTS).keys() == {"quick", "deep", "warned", "right"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.area}: {f.name}".replace(" ", "_"))
def test_check_and_the_run_agree(fault, sound, tmp_path):
    assert judge(fault, Path(shutil.copytree(sound, tmp_path / "voc"))) == ""
    assert not HOSTILE.exists()
