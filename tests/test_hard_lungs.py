"""Lung masks in hard situations, the short form; `python tests/hard_situations.py` runs all of them at 1 mm."""

import hard_lungs as hard
import hard_scans as scans
import numpy as np
import pytest
from hard_situations import ANATOMY_DICE, SITUATIONS, Expected, base_chest, chest_of, judge, segmented, shortfalls
from scipy import ndimage

SPACING_MM = 1.5
SHORT = (
    "expiration", "severe_emphysema", "left_lung_missing", "pneumothorax", "effusion", "large_bowel_gas",
    "hiatal_hernia", "arms_touching", "field_of_view", "thick_slices", "bases", "low_dose", "head", "water_phantom",
)  # fmt: skip
BY_NAME = {situation.name: situation for situation in SITUATIONS}


def short_cases():
    for name in SHORT:
        base = "phantom" if BY_NAME[name].bases else None
        limit = dict(BY_NAME[name].limits).get(base)
        yield pytest.param(name, base, marks=pytest.mark.xfail(strict=True, reason=limit) if limit else (), id=name)


@pytest.mark.parametrize(("name", "base"), list(short_cases()))
def test_situation(name, base):
    situation = BY_NAME[name]
    chest = chest_of(situation, base, SPACING_MM)
    _, result = segmented(chest)
    assert shortfalls(chest, result, situation.expected) == [], result


@pytest.mark.parametrize("seed", [101, 102])
def test_random_anatomy(seed):
    chest = hard.phantom_chest(seed, SPACING_MM)
    _, result = segmented(chest)
    assert shortfalls(chest, result, Expected(ANATOMY_DICE)) == [], result


@pytest.fixture(scope="module")
def chest():
    return base_chest("phantom", SPACING_MM)


def test_a_perfect_mask_falls_short_of_nothing_and_others_do(chest):
    """The judgement itself: it must see each kind of fault."""

    def faults(mask, chest=chest, expected=Expected(flags=("touches_border",)), flags=("touches_border",)):  # noqa: B008
        voxel_ml = np.prod(chest.spacing_mm) / 1000
        ml = {name: (mask == label).sum() * voxel_ml for name, label in (("right", 1), ("left", 2))}
        said = {"status": "ok", "volume_ml": ml, "flags": [{"code": code, "detail": ""} for code in flags]}
        return shortfalls(chest, judge(chest, mask, said), expected)

    truth = chest.truth
    assert faults(truth) == []
    assert faults(truth, flags=()) == ["flag touches_border missing"]
    assert len(faults(np.where(truth > 0, 3 - truth, 0))) == 2  # right and left exchanged
    assert "of the trachea" in faults(np.where(chest.trachea, 1, truth))[0]
    assert "of the nodules" in faults(np.where(chest.nodules, 0, truth))[0]
    bubble = hard.bowel_gas(chest)
    assert "gas" in faults(np.where(bubble.gas, 2, truth), bubble)[0]
    assert "not there" in faults(truth, chest._replace(truth=np.where(truth == 2, 0, truth)))[0]


def test_bowel_gas_is_dark_and_tissue_lies_between_it_and_the_lung(chest):
    altered = hard.bowel_gas(chest)
    assert np.median(altered.volume[altered.gas]) < -900
    assert ndimage.distance_transform_edt(chest.truth == 0, sampling=chest.spacing_mm)[altered.gas].min() > 2
    assert not (altered.gas & (chest.truth > 0)).any()


def test_what_is_filled_is_no_lung_any_more(chest):
    for altered in (hard.effusion(chest), hard.lung_collapsed(chest)):
        gone = (chest.truth > 0) & (altered.truth == 0)
        assert 0.1 < gone.sum() / (chest.truth > 0).sum() < 0.5
        assert np.median(altered.volume[gone]) > 0
        assert np.array_equal(altered.truth[~gone], chest.truth[~gone])


def test_truth_moves_with_the_volume(chest):
    for altered in (scans.rotated(chest, 15), hard.one_lung_missing(chest), scans.thick_slices(chest, 3.0)):
        inside = ndimage.binary_erosion(altered.truth > 0, iterations=2)
        assert np.median(altered.volume[inside]) < -800
        around = ndimage.binary_dilation(altered.truth > 0, iterations=3) & ~ndimage.binary_dilation(altered.truth > 0)
        assert np.median(altered.volume[around]) > -150
