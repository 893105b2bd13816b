"""Enhanced multi-frame CT: geometry, rescale and pixels of every frame, against the scene they were made from."""

import shutil

import numpy as np
import pydicom
import pytest
from dicom_files import AXIAL, chest_like, plane_points, save, stack, write_series
from multiframe_files import new_multiframe, scene_frames
from pydicom.encaps import encapsulate
from pydicom.uid import LegacyConvertedEnhancedCTImageStorage, RLELossless

from lungmill.dicom.header import read_header
from lungmill.dicom.multiframe import split_frames
from lungmill.errors import DicomError
from lungmill.indexing import index
from lungmill.series import read_series

CORONAL = (1, 0, 0, 0, 0, -1)
PLACES = stack((-24, -24, 0), (0, 0, 2), 12)
SHUFFLED = [PLACES[k] for k in np.random.default_rng(1).permutation(12)]


def expect_scene(folder, places=PLACES, tolerance=0.5):
    """The folder is read as `chest_like` at `places`; return the verdict."""
    series = read_series(folder)
    np.testing.assert_allclose(series.geometry.origins, places, atol=1e-4)
    for k, place in enumerate(places):
        truth = np.rint(chest_like(plane_points(place, AXIAL, (1, 1), 48, 48)))
        assert np.abs(series[k] - truth).max() <= tolerance
    return series.verdict


def test_frames_are_put_where_their_groups_say(tmp_path):
    save(new_multiframe(scene_frames(chest_like, SHUFFLED), SHUFFLED), tmp_path / "a")
    verdict = expect_scene(tmp_path)
    assert verdict["warnings"] == []
    assert [SHUFFLED[record["frame"]] for record in verdict["slices"]] == PLACES
    assert verdict["files"]["dicom"] == 1


def test_orientation_and_rescale_of_each_frame(tmp_path):
    slopes = [1.0 if k % 2 else 0.25 for k in range(12)]
    frames = [scene_frames(chest_like, [place], slope=slope)[0] for place, slope in zip(SHUFFLED, slopes, strict=True)]
    rescale = [(slope, -1024.0) for slope in slopes]
    save(new_multiframe(frames, SHUFFLED, [AXIAL] * 12, rescale=rescale), tmp_path / "a")
    verdict = expect_scene(tmp_path, tolerance=1)
    assert {record["slope"] for record in verdict["slices"]} == {1.0, 0.25}


def test_a_legacy_converted_object_without_stacks(tmp_path):
    dataset = new_multiframe(
        scene_frames(chest_like, PLACES), PLACES, SOPClassUID=LegacyConvertedEnhancedCTImageStorage
    )
    for groups in dataset.PerFrameFunctionalGroupsSequence:
        del groups.FrameContentSequence
    save(dataset, tmp_path / "a")
    expect_scene(tmp_path)


def test_one_object_per_slice(tmp_path):
    for number, place in enumerate(SHUFFLED):
        dataset = new_multiframe(scene_frames(chest_like, [place]), [place])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        save(dataset, tmp_path / str(number))
    expect_scene(tmp_path)


@pytest.mark.parametrize("offset_table", [True, False])
def test_compressed_frames(tmp_path, offset_table):
    dataset = new_multiframe(scene_frames(chest_like, SHUFFLED), SHUFFLED)
    dataset.compress(RLELossless)
    if not offset_table:
        frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=12))
        dataset.PixelData = encapsulate(frames, has_bot=False)
    save(dataset, tmp_path / "a")
    expect_scene(tmp_path)


@pytest.mark.parametrize("shape", [(48, 48), (47, 49)])
def test_big_endian_bytes_in_words(tmp_path, shape):
    frames = [(np.arange(shape[0] * shape[1]) * (k + 3) % 251).astype(np.uint8).reshape(shape) for k in range(12)]
    dataset = new_multiframe(frames, PLACES, rescale=(8.0, -1024.0))
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    joined = np.stack(frames).tobytes()
    dataset.PixelData = np.frombuffer(joined + bytes(len(joined) % 2), "<u2").astype(">u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(tmp_path / "a", implicit_vr=False, little_endian=False, force_encoding=True)
    for plane, stored in zip(read_series(tmp_path), frames, strict=True):
        np.testing.assert_array_equal(plane, stored.astype(int) * 8 - 1024)


@pytest.mark.parametrize("bits", [8, 32])
def test_frames_of_other_word_lengths(tmp_path, bits):
    kind = np.dtype(f"u{bits // 8}")
    frames = [(frame // 8).astype(kind) for frame in scene_frames(chest_like, SHUFFLED)]
    save(new_multiframe(frames, SHUFFLED, rescale=(8.0, -1024.0)), tmp_path / "a")
    expect_scene(tmp_path, tolerance=8)


def test_frames_of_several_fragments_are_found_by_the_offset_table(tmp_path):
    dataset = new_multiframe(scene_frames(chest_like, SHUFFLED), SHUFFLED)
    dataset.compress(RLELossless)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=12))
    dataset.PixelData = encapsulate(frames, fragments_per_frame=3)
    save(dataset, tmp_path / "a")
    assert read_header(tmp_path, "a").pixels.fragments == 36
    expect_scene(tmp_path)


def test_frames_that_are_not_all_there(tmp_path):
    path = tmp_path / "a"
    save(new_multiframe(scene_frames(chest_like, PLACES), PLACES), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: -48 * 48 * 2 * 3])
    assert index(tmp_path)["reason"] == "truncated_pixels"
    dataset = new_multiframe(scene_frames(chest_like, PLACES), PLACES)
    dataset.compress(RLELossless)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=12))
    dataset.PixelData = encapsulate(frames[:-1])
    save(dataset, path)
    assert index(tmp_path)["reason"] == "truncated_pixels"


@pytest.mark.parametrize("spoil", ["position", "orientation", "spacing", "count", "groups"])
def test_frames_without_geometry(tmp_path, spoil):
    dataset = new_multiframe(scene_frames(chest_like, PLACES), PLACES)
    shared, own = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence
    if spoil == "position":
        del own[5].PlanePositionSequence
    elif spoil == "orientation":
        del shared.PlaneOrientationSequence
    elif spoil == "spacing":
        del shared.PixelMeasuresSequence
    elif spoil == "count":
        del own[7:]
    else:
        del dataset.PerFrameFunctionalGroupsSequence, dataset.SharedFunctionalGroupsSequence
    save(dataset, tmp_path / "a")
    verdict = index(tmp_path)
    assert (verdict["status"], verdict["reason"]) == ("rejected", "no_geometry")


def test_stacks_and_orientations_in_one_object_are_told_apart(tmp_path):
    coronal = stack((-24, -11, 24), (0, 2, 0), 11)
    frames = scene_frames(chest_like, PLACES) + scene_frames(chest_like, coronal, CORONAL)
    order = np.random.default_rng(2).permutation(len(frames))
    places, orientations = [*PLACES, *coronal], [AXIAL] * 12 + [CORONAL] * 11
    save(
        new_multiframe([frames[k] for k in order], [places[k] for k in order], [orientations[k] for k in order]),
        tmp_path / "a",
    )
    verdict = expect_scene(tmp_path)
    assert [candidate["orientation"] for candidate in verdict["candidates"]] == ["axial", "coronal"]
    shifted = [(x + 0.4, y, z + 1) for x, y, z in PLACES[:-1]]
    both = [*PLACES, *shifted]
    stacks = [1] * 12 + [2] * 11
    save(new_multiframe(scene_frames(chest_like, both), both, stacks=stacks), tmp_path / "a")
    verdict = expect_scene(tmp_path)
    assert [candidate["n_slices"] for candidate in verdict["candidates"]] == [12, 11]


def test_copies_and_repeats_of_an_object(tmp_path):
    save(new_multiframe(scene_frames(chest_like, PLACES), PLACES), tmp_path / "a")
    shutil.copy(tmp_path / "a", tmp_path / "b")
    verdict = expect_scene(tmp_path)
    assert [warning["code"] for warning in verdict["warnings"]] == ["duplicate_slices"]
    (tmp_path / "b").unlink()
    warmer = scene_frames(lambda points: chest_like(points) + 30, PLACES)
    save(new_multiframe(scene_frames(chest_like, PLACES) + warmer, PLACES * 2), tmp_path / "a")
    verdict = expect_scene(tmp_path)
    assert [candidate["n_slices"] for candidate in verdict["candidates"]] == [12, 12]
    assert [record["frame"] for record in verdict["slices"]] == list(range(12))


def test_the_same_scan_as_single_files(tmp_path):
    write_series(tmp_path / "single", chest_like, PLACES)
    save(new_multiframe(scene_frames(chest_like, SHUFFLED), SHUFFLED), tmp_path / "multi" / "a")
    single, multi = read_series(tmp_path / "single"), read_series(tmp_path / "multi")
    np.testing.assert_array_equal(single.to_array(), multi.to_array())
    assert single.verdict["geometry"] == multi.verdict["geometry"]


def test_an_absurd_number_of_frames_costs_nothing(tmp_path):
    dataset = new_multiframe(scene_frames(chest_like, PLACES), PLACES)
    dataset.NumberOfFrames = 2_000_000_000
    save(dataset, tmp_path / "a")
    with pytest.raises(DicomError, match="no_geometry"):
        split_frames(tmp_path, read_header(tmp_path, "a"))
    assert index(tmp_path)["reason"] == "no_geometry"


def test_a_real_enhanced_object(real_data, tmp_path):
    shutil.copy(real_data / "corrupt" / "eCT_Supplemental.dcm", tmp_path)
    series = read_series(tmp_path, min_slices=2)
    dataset = pydicom.dcmread(tmp_path / "eCT_Supplemental.dcm")
    own = dataset.PerFrameFunctionalGroupsSequence
    heights = [float(groups.PlanePositionSequence[0].ImagePositionPatient[2]) for groups in own]
    # Rows run to the patient's right here, so the normal points to the feet.
    for k, frame in enumerate(np.argsort(heights)[::-1]):
        assert series.geometry.origins[k][2] == heights[frame]
        np.testing.assert_array_equal(series[k], dataset.pixel_array[frame].astype(int) - 1024)
    assert series.geometry.pixel_spacing == (0.388672, 0.388672)
    assert series.geometry.row_direction.tolist() == [-1, 0, 0]
