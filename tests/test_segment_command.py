"""A program of the user's in place of our own mask: a small stand-in that reads NIfTI as any other program would."""

import sys

import numpy as np
import pytest
from body_phantom import GRID, MASK, VOLUME

from lungmill.config import check_command
from lungmill.errors import LungmillError
from lungmill.mask_statistics import Plausible
from lungmill.segment_command import segment_with_command

# SimpleITK finds the air inside the body and parts it at the body's middle: an independent reader of what we write.
PROGRAM = """
import sys
import numpy as np
import SimpleITK as sitk

image = sitk.ReadImage(sys.argv[1])
print("read", image.GetSize(), image.GetOrigin(), flush=True)
flip = "flip" in sys.argv
array = sitk.GetArrayFromImage(image)
lungs = (array > -900) & (array < -600)
middle = (np.arange(array.shape[2]) * image.GetSpacing()[0] + image.GetOrigin()[0]) > float(sys.argv[3])
labels = np.where(lungs, np.where(middle, 20, 10), 0).astype(np.uint8)
if "none" in sys.argv:
    labels[:] = 0
if "fail" in sys.argv:
    sys.exit("no network weights here")
result = sitk.GetImageFromArray(labels)
result.CopyInformation(image)
if "shift" in sys.argv:
    result.SetOrigin([0, 0, 0])
if flip:
    result = sitk.Flip(result, [True, False, True])
if "silent" not in sys.argv:
    sitk.WriteImage(result, sys.argv[2])
"""
LABELS = {"right": [10], "left": [20]}
MIDDLE = GRID.to_mm((0, 0, 65))[2]


@pytest.fixture
def run(tmp_path):
    program = tmp_path / "a program.py"
    program.write_text(PROGRAM)

    def call(*words, labels=LABELS, command=None, **more):
        command = command or f"{sys.executable} '{program}' {{volume}} {{mask}} {MIDDLE} {' '.join(words)}"
        folder = tmp_path / "masks" / "p.command"
        try:
            return segment_with_command(VOLUME, GRID, command, labels=labels, folder=folder, patient="p", **more)
        finally:
            assert not folder.exists()

    return call


@pytest.mark.parametrize("words", [(), ("flip",)])
def test_the_programs_labels_become_the_mask(run, words):
    mask, measured = run(*words)
    smooth = (VOLUME > -900) & (VOLUME < -600)
    left = np.broadcast_to(GRID.axis_mm(2) > MIDDLE, VOLUME.shape)
    np.testing.assert_array_equal(mask, np.where(smooth, np.where(left, 2, 1), 0))
    assert mask.dtype == np.uint8 and mask.flags.c_contiguous
    assert np.mean((mask == MASK)[MASK > 0]) > 0.9  # noise of 25 HU leaves the window for a few voxels
    assert measured["method"] == "command" and measured["status"] == "ok"
    assert measured["volume_ml"]["left"] == pytest.approx((mask == 2).sum() * np.prod(GRID.spacing_mm) / 1000, abs=0.06)


def test_limits_of_what_is_plausible_are_settings(run):
    _, measured = run(plausible=Plausible((0.0, 1.0), 0.5, 2.0))
    assert [flag["code"] for flag in measured["flags"]] == ["lung_volume"]


def test_a_program_that_finds_nothing(run):
    mask, measured = run("none")
    assert not mask.any() and measured["status"] == "no_lungs" and "no lungs" in measured["reason"]
    assert measured["bounding_box"] is None and measured["flags"] == []


@pytest.mark.parametrize(
    ("words", "labels", "message"),
    [
        (("fail",), LABELS, "p: .* exit code 1; its last line: no network weights here"),
        (("silent",), LABELS, "p: .* wrote no mask.nii.gz"),
        (("shift",), LABELS, "p: .* lies on another grid"),
        ((), {"right": [1], "left": [2]}, "p: the program's mask holds 10, 20, none of segment.labels"),
    ],
)
def test_what_a_program_does_wrong_is_one_line_with_the_patient(run, words, labels, message):
    with pytest.raises(LungmillError, match=message) as error:
        run(*words, labels=labels)
    assert "\n" not in str(error.value)


def test_a_program_that_does_not_exist(run):
    with pytest.raises(LungmillError, match=r"p: segment\.command: no-such-program cannot be run"):
        run(command="no-such-program {volume} {mask}")


@pytest.mark.parametrize(
    ("command", "labels", "message"),
    [
        (None, LABELS, r"segment\.command: empty"),
        ("lungmask {volume}", LABELS, r"\{mask\} is not in"),
        ("lungmask '{volume} {mask}", LABELS, "cannot be split"),
        ("a {volume} {mask}", {"right": [1], "left": [1]}, r"segment\.labels: \[1\] is in both"),
        ("a {volume} {mask}", {"right": [], "left": [1]}, "one of the two is empty"),
    ],
)
def test_a_command_that_makes_no_sense(command, labels, message):
    with pytest.raises(LungmillError, match=message):
        check_command(command, labels)
