import itertools
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from patch_cohort import (
    CHUNK,
    PATIENTS,
    STORES,
    cut_out,
    limit,
    make_cohort,
    mask_of,
    nodules_of,
    positions_of,
    volume_of,
)

from lungmill import zarr_reader
from lungmill.cohort import open_cohort
from lungmill.errors import LungmillError
from lungmill.training.dataflow import DataFlow
from lungmill.training.errors import ArrayError
from lungmill.training.patch_draws import draw_patients
from lungmill.training.patch_source import PatchSource
from lungmill.training.views import DelayedView, MultiSourceArray


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("patches") / "results", STORES)


@pytest.fixture(scope="module")
def cohort(results):
    return open_cohort(results)


def references(source, product="image", fill=-1024):
    """All patches of a source, cut by NumPy out of the volumes that the cohort was made from."""
    make, fill = (volume_of, fill) if product == "image" else (mask_of, 0)
    arrays = {name: make(name) for name in PATIENTS}
    rows = source.table[["patient", "z", "y", "x"]].itertuples(index=False)
    return np.stack([cut_out(arrays[name], centre, source.shape[1:], fill) for name, *centre in rows])


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("shape", [(8, 12, 12), (17, 5, 30), (40, 20, 20), (15, 20), (60, 7)])
def test_patches_are_the_slices_at_their_positions(cohort, store, shape):
    source = PatchSource(cohort, shape, ("lung", "background"), store=store, length=40, fill=-2000)
    assert source.images.shape == source.shape == (40, *shape)
    assert source.images.dtype == np.int16 and source.masks.dtype == np.uint8
    np.testing.assert_array_equal(source.images[:], references(source, fill=-2000))
    np.testing.assert_array_equal(source.masks[...], references(source, "mask"))
    np.testing.assert_array_equal(source[7], source.images[7])


def test_centres_are_stored_positions_of_their_class(cohort):
    source = PatchSource(cohort, (4, 4, 4), ("lung", "pleura", "background"), length=300)
    table = source.table
    assert table.columns.tolist() == ["patient", "class", "z", "y", "x"]
    assert np.array(source.classes)[source.labels].tolist() == table["class"].tolist()
    np.testing.assert_array_equal(source.voxels, table[["z", "y", "x"]])
    for (name, label), rows in table.groupby(["patient", "class"]):
        stored = set(map(tuple, positions_of(name)[label].tolist()))
        assert set(map(tuple, rows[["z", "y", "x"]].to_numpy().tolist())) <= stored


def index_of(axis_sizes):
    """An index of NumPy's for the first axes of an array."""

    def entry(n):
        integers = st.integers(-n, n - 1)
        slices = st.builds(slice, *[st.none() | st.integers(-n - 2, n + 2)] * 2, st.sampled_from([None, 1, 2, -1, 3]))
        lists = st.lists(integers, max_size=6)
        return integers, slices, lists, st.lists(st.booleans(), min_size=n, max_size=n).map(np.array)

    first = st.one_of(*entry(axis_sizes[0]))
    later = [st.one_of(*entry(n)[:2]) for n in axis_sizes[1:]]
    return st.integers(0, len(later)).flatmap(lambda count: st.tuples(first, *later[:count]))


@pytest.fixture(scope="module")
def dozen(cohort):
    source = PatchSource(cohort, (5, 6, 7), length=12, store="npy")
    return source, references(source)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_indexing_is_that_of_the_array_of_all_patches(dozen, data):
    source, whole = dozen
    index = data.draw(index_of(whole.shape))
    got = source.images[index]
    np.testing.assert_array_equal(got, whole[index])
    assert np.shape(got) == np.shape(whole[index])


def test_an_index_out_of_range(cohort):
    source = PatchSource(cohort, (5, 6, 7), length=12)
    for wrong in (12, -13, [0, 12], np.array([3, -13]), np.array([12])):
        with pytest.raises(IndexError, match="out of bounds"):
            source.images[wrong]
    np.testing.assert_array_equal(source.images[np.array([-1, 3, 3])], source.images[[11, 3, 3]])
    assert source.images[np.array([], int)].shape == (0, 5, 6, 7)
    assert len(list(source)) == 12


def test_labels_cannot_be_changed_by_accident(cohort):
    with pytest.raises(ValueError, match="read-only"):
        PatchSource(cohort, (5, 6, 7), length=12).labels[0] = 1


# --- balance ---


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 99),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    cut=st.integers(0, 9000),
    length=st.integers(1, 4000),
)
def test_after_any_number_of_elements_all_differ_by_one_at_most(seed, sizes, cut, length):
    rng = np.random.default_rng(seed)
    patients_of = [np.sort(rng.choice(20, n, replace=False)).astype(np.int32) for n in sizes]
    classes, patients, turns = draw_patients(seed, patients_of, 0, cut + length)
    for stop in (cut, cut + length):
        counts = np.bincount(classes[:stop], minlength=len(sizes))
        assert np.ptp(counts) <= 1
        for label, having in enumerate(patients_of):
            drawn = patients[:stop][classes[:stop] == label]
            assert set(drawn.tolist()) <= set(having.tolist())
            assert np.ptp(np.bincount(drawn, minlength=20)[having]) <= 1
    # How often a patient was drawn before is counted right, and a window is the same whatever comes before it.
    seen = {}
    for key, turn in zip(zip(classes.tolist(), patients.tolist(), strict=True), turns.tolist(), strict=True):
        assert turn == seen.get(key, 0)
        seen[key] = turn + 1
    window = draw_patients(seed, patients_of, cut, cut + length)
    for part, whole in zip(window, (classes, patients, turns), strict=True):
        np.testing.assert_array_equal(part, whole[cut:])


def test_a_source_is_balanced_and_repeats_no_position_before_all_were_used(cohort):
    source = PatchSource(cohort, (7, 7, 7), ("nodule", "lung", "background"), length=3 * 3 * 700)
    counts = source.table.groupby(["class", "patient"]).size()
    assert counts["lung"].index.tolist() == ["anna", "bert", "dora"]
    assert counts["nodule"].index.tolist() == ["anna", "dora"]
    assert np.ptp(counts["lung"]) <= 1 and np.ptp(counts["nodule"]) <= 1
    assert np.ptp(counts.groupby("class").sum()) <= 1
    for (label, name), rows in source.table.groupby(["class", "patient"]):
        voxels = list(map(tuple, rows[["z", "y", "x"]].to_numpy().tolist()))
        available = len(set(voxels))
        assert available <= (6 if label == "nodule" else 300)
        for first in range(0, len(voxels) - available, available):
            assert len(set(voxels[first : first + available])) == available, (label, name)


def test_epochs_go_on_where_the_last_one_ends(cohort):
    source = PatchSource(cohort, (4, 4, 4), length=35)
    longer = PatchSource(cohort, (4, 4, 4), length=105)
    parts = [source.epoch(number) for number in range(3)]
    np.testing.assert_array_equal(np.concatenate([part.voxels for part in parts]), longer.voxels)
    np.testing.assert_array_equal(np.concatenate([part.labels for part in parts]), longer.labels)
    np.testing.assert_array_equal(parts[2].images[:], longer.images[70:])
    np.testing.assert_array_equal(parts[0].table, source.table)
    assert not parts[1].table.equals(source.table)
    np.testing.assert_array_equal(parts[2].epoch(0).voxels, source.voxels)


def test_an_element_depends_on_seed_and_number_alone(cohort):
    def make(**changed):
        return PatchSource(cohort, (6, 6, 6), **{"length": 60, "seed": 3, "jitter_mm": 4.0, **changed})

    source = make()
    whole = source.images[:]
    backwards = make()
    for number in reversed(range(60)):
        np.testing.assert_array_equal(backwards.images[number], whole[number])
    np.testing.assert_array_equal(make(length=600).images[:60], whole)
    np.testing.assert_array_equal(make(store="npy").images[:], whole)
    np.testing.assert_array_equal(make(max_open=1).images[:], whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source)).images[:], whole)
    assert (make(seed=4).voxels != source.voxels).any(axis=1).mean() > 0.9
    with ThreadPoolExecutor(4) as pool:
        fresh = make(max_open=2)
        parts = list(pool.map(lambda first: fresh.images[np.arange(first, first + 6)], range(0, 60, 6), timeout=60))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


# --- nodules ---


def covers(table, shape, voxel):
    start = table[["z", "y", "x"]].to_numpy() - np.array((1, *shape)[-3:]) // 2
    return ((start <= voxel) & (np.array(voxel) < start + (1, *shape)[-3:])).all(axis=1)


@pytest.mark.parametrize("shape", [(8, 12, 12), (5, 7), (16, 16, 20)])
@pytest.mark.parametrize("annotated", [True, False])
def test_nodule_patches_have_a_nodule_and_the_others_have_none(cohort, tmp_path, shape, annotated):
    annotations = None
    if annotated:
        annotations = [nodule for name in PATIENTS for nodule in nodules_of(name)]
    elif len(shape) == 2:
        with pytest.raises(ArrayError, match=r"anna: .* would miss: give annotations="):
            PatchSource(cohort, shape, ("nodule", "lung"))
        return
    source = PatchSource(cohort, shape, ("nodule", "lung"), length=400, annotations=annotations)
    for name, rows in source.table.groupby("patient"):
        hit = np.zeros(len(rows), bool)
        for voxel in PATIENTS[name][1]:
            hit |= covers(rows, shape, voxel)
        assert (hit == (rows["class"] == "nodule")).all(), name
    if annotated:
        nodules = source.table[source.table["class"] == "nodule"]
        found = {
            name: set(map(tuple, rows.iloc[:, 2:].to_numpy().tolist())) for name, rows in nodules.groupby("patient")
        }
        assert found == {name: set(voxels) for name, (_, voxels) in PATIENTS.items() if voxels}


def test_annotations_as_a_file_and_by_series(cohort, results, tmp_path):
    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    for nodule in nodules_of("anna") + nodules_of("dora"):
        z, y, x = nodule.centre_mm
        lines.append(f"{nodule.patient_or_series},{x},{y},{z},5")
    (tmp_path / "a.csv").write_text("\n".join(lines))
    source = PatchSource(cohort, (5, 5), "nodule", annotations=tmp_path / "a.csv", length=9)
    assert set(source.table["patient"]) == {"anna", "dora"}
    assert source.classes == ("nodule",)


# --- arguments ---


def test_shape_and_jitter_in_mm(cohort):
    source = PatchSource(cohort, shape_mm=(16.0, 12.4, 12.6), length=200)  # spacing 2, 1, 1
    assert source.shape_voxels == (8, 12, 13)
    assert PatchSource(cohort, shape_mm=(10, 7.4), length=5).shape_voxels == (10, 7)
    moved = PatchSource(cohort, (8, 12, 13), length=200, jitter_mm=6)
    shift = moved.voxels - source.voxels
    assert (abs(shift).max(axis=0) == (3, 6, 6)).all()
    assert (abs(shift.mean(axis=0)) < 0.8).all()
    assert moved.table[["patient", "class"]].equals(source.table[["patient", "class"]])
    flat = PatchSource(cohort, (12, 13), length=200, jitter_mm=6).voxels - source.voxels
    assert (flat[:, 0] == 0).all() and abs(flat[:, 1:]).max() == 6
    assert abs(PatchSource(cohort, (12, 13), length=200, jitter_mm=(4, 0, 0)).voxels - source.voxels).max() == 2
    far = PatchSource(cohort, (4, 4, 4), length=300, jitter_mm=500)
    for name, rows in far.table.groupby("patient"):
        voxels = rows[["z", "y", "x"]].to_numpy()
        assert (voxels.min(axis=0) == 0).all() and (voxels.max(axis=0) == np.array(PATIENTS[name][0]) - 1).all()


def test_positions_of_ones_own(cohort):
    own = {"hilum": {"anna": [[1, 2, 3], [4, 5, 6]], "carl": np.array([[0, 0, 0]])}}
    source = PatchSource(cohort, (4, 4, 4), ("hilum", "lung"), positions=own, length=40)
    hilum = source.table[source.table["class"] == "hilum"]
    assert hilum["patient"].value_counts().to_dict() == {"anna": 10, "carl": 10}
    assert set(map(tuple, hilum.iloc[:, 2:].to_numpy().tolist())) == {(1, 2, 3), (4, 5, 6), (0, 0, 0)}
    np.testing.assert_array_equal(source.images[:], references(source))
    outside = PatchSource(cohort, (4, 4, 4), "x", positions={"x": {"anna": [[30, 0, 0]]}}, length=2)
    with pytest.raises(LungmillError, match="anna: positions lie outside the volume"):
        outside.images[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": (4,)}, r"shape=\(4,\) is not three numbers"),
        ({"shape": (4.0, 4.0)}, "is not three numbers"),
        ({"shape": (4, 0, 4)}, "less than a voxel"),
        ({}, "give either shape, in voxels, or shape_mm"),
        ({"shape": (4, 4), "shape_mm": (4, 4)}, "give either shape"),
        ({"shape_mm": (0.4, 4)}, "less than a voxel"),
        ({"shape": (4, 4), "classes": ()}, "give different names"),
        ({"shape": (4, 4), "classes": ("lung", "lung")}, "give different names"),
        ({"shape": (4, 4), "length": 0}, "length"),
        ({"shape": (4, 4), "seed": -1}, "seed"),
        ({"shape": (4, 4), "max_open": 0}, "max_open"),
        ({"shape": (4, 4), "jitter_mm": -1}, "jitter_mm"),
        ({"shape": (4, 4), "fill": 40000}, "fill=40000 is no int16"),
        ({"shape": (4, 4), "store": "npz"}, "store='npz' is not one of auto, zarr, zarr_zip, npy, hdf5, bcolz"),
        ({"shape": (4, 4), "positions": {"x": {}}}, "positions has x, which is not one of lung, background"),
        ({"shape": (4, 4), "classes": "x", "positions": {"x": {"anna": [[1, 2]]}}}, "is not a table of voxels"),
        (
            {"shape": (4, 4), "classes": "lungs"},
            r"class 'lungs': none of 4 patients .*background, lung, nodule, pleura",
        ),
    ],
)
def test_arguments_that_make_no_sense(cohort, arguments, message):
    with pytest.raises(LungmillError, match=message):
        PatchSource(cohort, **arguments)


def test_a_cohort_without_patients_positions_or_stores(cohort, tmp_path):
    with pytest.raises(ArrayError, match="has no patients"):
        PatchSource(cohort.select(split="val"), (4, 4))
    with pytest.raises(LungmillError, match="class 'lung': none of 1 patients"):
        PatchSource(cohort.select(patient="carl"), (4, 4))
    with pytest.raises(LungmillError, match="class 'nodule': none of 1 patients"):
        PatchSource(cohort.select(patient="bert"), (4, 4, 4), "nodule")
    bare = make_cohort(tmp_path / "bare", annotated=False)
    assert PatchSource(bare, (4, 4)).store == "zarr"
    with pytest.raises(LungmillError, match="anna: no hdf5 store with the image"):
        PatchSource(bare, (4, 4), store="hdf5", length=9).images[:]
    shutil.rmtree(bare / "cohort.zarr" / "bert")
    assert PatchSource(bare, (4, 4)).store == "npy"
    with pytest.raises(LungmillError, match="bert: no zarr store with the image"):
        PatchSource(bare, (4, 4), store="zarr", length=9).images[:]
    for name in PATIENTS:
        (bare / "volumes" / f"{name}.npy").unlink()
    with pytest.raises(LungmillError, match="no store in common"):
        PatchSource(bare, (4, 4))
    (bare / "masks" / "anna.positions.npz").unlink()
    shutil.copytree(tmp_path / "bare" / "cohort.zarr" / "anna", bare / "cohort.zarr" / "bert")
    assert set(PatchSource(bare, (4, 4)).table["patient"]) == {"bert", "dora"}


def test_damaged_stores_are_named(tmp_path):
    results = make_cohort(tmp_path / "results", ["npy", "zarr"], annotated=False)
    shard = results / "cohort.zarr" / "anna" / "image" / "c" / "0" / "0" / "0"
    whole = shard.read_bytes()
    source = PatchSource(open_cohort(results).select(patient="anna"), (8, 8, 8), length=50)
    for content in (whole[:-1], whole[:10], b""):
        shard.write_bytes(content)
        with pytest.raises(LungmillError, match=r"anna/image/c/0/0/0 is damaged"):
            source.images[:]
    shard.write_bytes(b"\0" * 2000 + whole[2000:])
    with pytest.raises(LungmillError, match=r"anna/image/c/0/0/0 is damaged"):
        source.images[:]


# --- reading ---


def chunks_touched(centre, shape, volume_shape):
    """The chunks that hold voxels of a patch, by looking at each of its voxels."""
    start = np.array(centre) - np.array(shape) // 2
    voxels = np.array(list(itertools.product(*(range(s, s + n) for s, n in zip(start, shape, strict=True)))))
    voxels = voxels[((voxels >= 0) & (voxels < volume_shape)).all(axis=1)]
    return set(map(tuple, (voxels // CHUNK).tolist()))


@pytest.mark.parametrize("shape", [(16, 16, 16), (5, 6, 33)])
def test_each_chunk_that_a_patch_crosses_is_read_and_decoded_once_and_no_other(cohort, monkeypatch, shape):
    source = PatchSource(cohort, shape, ("lung", "background"), store="zarr", length=50)
    decoded, reads = [], []
    decode, pread = zarr_reader.ShardReader._decode_chunk, zarr_reader.ShardReader._pread
    source.images[:]  # stores are open now

    def counting_decode(reader, *arguments):
        decoded.append(1)
        return decode(reader, *arguments)

    def counting_pread(reader, length, offset):
        reads.append((reader, offset))
        return pread(reader, length, offset)

    monkeypatch.setattr(zarr_reader.ShardReader, "_decode_chunk", counting_decode)
    monkeypatch.setattr(zarr_reader.ShardReader, "_pread", counting_pread)
    for number, (name, _, *centre) in enumerate(source.table.itertuples(index=False)):
        volume = volume_of(name)
        stored = [
            chunk
            for chunk in chunks_touched(centre, shape, volume.shape)
            if (volume[tuple(slice(i * CHUNK, (i + 1) * CHUNK) for i in chunk)] != -1024).any()
        ]
        decoded.clear(), reads.clear()
        source.images[number]
        assert len(decoded) == len(set(reads)) == len(reads) == len(stored)


def test_zarr_stores_that_others_wrote(cohort, tmp_path):
    results = make_cohort(tmp_path / "results", ["npy"], annotated=False)
    for name, keep in (("anna", {"chunks": (9, 8, 7)}), ("bert", {"chunks": (8, 8, 8), "shards": (16, 16, 16)})):
        group = zarr.open_group(results / "cohort.zarr" / name, mode="w")
        for part, array in (("image", volume_of(name)), ("mask", mask_of(name))):
            group.create_array(part, data=array, **keep)
    table = (results / "dataset.tsv").read_text().splitlines()
    rows = [f"{line}\t{'zarr' if i == 0 else f'cohort.zarr/{line.split()[0]}'}" for i, line in enumerate(table)]
    (results / "dataset.tsv").write_text("\n".join(rows) + "\n")
    ours = open_cohort(results).select(patient=["anna", "bert"])
    source = PatchSource(ours, (9, 10, 11), length=30)
    assert source.store == "zarr"
    np.testing.assert_array_equal(source.images[:], references(source))
    np.testing.assert_array_equal(source.masks[:], references(source, "mask"))


@pytest.mark.parametrize("store", STORES)
def test_few_files_are_open_at_a_time(cohort, store):
    def open_files():
        return sum(path.resolve().is_relative_to(cohort.results.resolve()) for path in listed.iterdir())

    listed = Path("/proc/self/fd")
    if not listed.is_dir():
        pytest.skip("this system does not list open files")
    before = open_files()
    source = PatchSource(cohort, (4, 4, 4), store=store, length=60, max_open=1)
    for number in range(60):
        source.images[number]
        assert open_files() - before <= 2
    assert len(source._readers) == 1


def test_a_forked_process_opens_its_own_files(cohort):
    import multiprocessing

    def child(queue):
        queue.put((len(source._readers), source.images[:]))

    source = PatchSource(cohort, (6, 6, 6), store="hdf5", length=20)
    expected = source.images[:]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    try:
        _, got = queue.get(timeout=30)
    finally:
        process.join(10)
        process.kill()
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("workers", [(0, 0), (1, 0), (2, 0), (1, 2)])
def test_a_data_flow_reads_images_masks_and_labels_in_tandem(cohort, workers):
    source = PatchSource(cohort, (6, 7, 8), length=45)
    images, masks = references(source), references(source, "mask")
    io, processes = workers
    flow = DataFlow(
        [source.images, source.masks, source.labels, np.arange(45)],
        8,
        nb_io_workers=io,
        nb_proc_workers=processes,
        loop_forever=False,
        sample_random=True,
        rng=0,
    )
    seen = []
    with limit(60):
        for image, mask, label, number in flow.flow():
            np.testing.assert_array_equal(image, images[number])
            np.testing.assert_array_equal(mask, masks[number])
            np.testing.assert_array_equal(label, source.labels[number])
            seen += number.tolist()
    assert sorted(seen) == list(range(45))


def test_views_of_a_source(cohort):
    source = PatchSource(cohort, (4, 5, 6), length=20)
    other = source.epoch(1)
    both = MultiSourceArray([source.images, other.images])
    np.testing.assert_array_equal(both[[3, 25, 3, 39]], np.stack([source[3], other[5], source[3], other[19]]))
    view = DelayedView(source.images, idx_min=5)
    np.testing.assert_array_equal(view[[-1, 0], 2], source.images[[19, 5], 2])
    np.testing.assert_array_equal(np.asarray(source.masks), source.masks[:])
