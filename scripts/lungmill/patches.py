"""Training patches of one patient: where they lie, how they are cut, and the file that holds them.

A patch of shape S around the voxel c covers the voxels c - S // 2 to c - S // 2 + S (the last one excluded) of each
axis: c is the voxel S // 2 of the patch, the exact middle for odd sizes and the one after the middle for even sizes.
"""

import numpy as np

from lungmill.errors import LungmillError
from lungmill.files import replacing
from lungmill.positions import class_rng
from lungmill.version import __version__

AIR_HU = -1024

MEANING = {
    "lung": "centre inside the lung mask",
    "background": "centre inside the body, outside the lung mask",
    "nodule": "contains the centre of an annotated nodule",
}


def cut_patches(path, volume, positions, grid, *, shape, per_class, nodules, seed, patient):
    """Write the patches of one patient to the HDF5 file `path`; return how many of each class there are, as a dict.

    volume: int16 HU [z, y, x], memory-mapped or in memory. positions: the table of `lungmill.positions` that belongs to
    it. shape: of a patch in voxels; three numbers [z, y, x], or two [y, x] for patches out of axial slices. per_class:
    patches of each class; fewer where the table has fewer positions. nodules: those of this patient
    (`lungmill.annotations.nodules_of`), or None where there are no annotations at all, and then no class `nodule`.

    The classes, by the voxel at the patch's centre:
    - `lung` and `background`: drawn from the table. Where nodules are given, no patch of these two contains the centre
      of one. A mask without lungs gives none of either: what is not lung is not known then.
    - `nodule`: every nodule contributes the same number of patches, to within one; its first is centred on it, the
      others are shifted by up to a quarter of the patch, so that its centre stays inside. Where there are more nodules
      than `per_class`, a random choice of them. A nodule outside the volume gives none and is counted in the attribute
      `nodules_outside`.

    The file: `<class>` is int16 (N, *shape), a chunk per patch, -1024 beyond the volume's edge; `positions/<class>` is
    int32 (N, 3), the centre voxels [z, y, x] in `volume`, ordered by z, y, x. Attributes: `classes`, `patch_shape`,
    `spacing_mm`, `origin_mm` (of the volume), `seed`, `patient`, `lungmill`. The draw depends on the seed, the name
    of the patient and the class alone.
    """
    import h5py

    shape = _patch_shape(shape)
    if tuple(volume.shape) != tuple(grid.shape):
        raise LungmillError(
            f"{patient}: volume {tuple(volume.shape)} and geometry {tuple(grid.shape)} do not belong together: "
            f"remake the volume"
        )
    centres, outside = choose_centres(
        positions, grid, shape=shape, per_class=per_class, nodules=nodules, seed=seed, patient=patient
    )
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, chosen in centres.items():
            dataset = file.create_dataset(
                name,
                shape=(len(chosen), *shape),
                maxshape=(None, *shape),  # HDF5 refuses chunks of 1 in a fixed length of 0
                dtype=np.int16,
                chunks=(1, *shape),
                shuffle=True,
                compression="gzip",
                compression_opts=1,
            )
            dataset.attrs["meaning"] = MEANING[name]
            for i, centre in enumerate(chosen):
                dataset[i] = crop_center(volume, _in_3d(shape), centre).reshape(shape)
            file[f"positions/{name}"] = chosen
        file.attrs["classes"] = list(centres)
        file.attrs["patch_shape"] = shape
        file.attrs["spacing_mm"] = grid.spacing_mm
        file.attrs["origin_mm"] = grid.origin_mm
        file.attrs["seed"] = seed
        file.attrs["patient"] = patient
        file.attrs["nodules_outside"] = outside
        file.attrs["lungmill"] = __version__
    return {name: len(chosen) for name, chosen in centres.items()}


def choose_centres(positions, grid, *, shape, per_class, nodules, seed, patient):
    """Choose the centres of patches for every class, as `cut_patches` describes.

    Returns a dict of int32 (N, 3) voxels [z, y, x], sorted, and the number of nodules that lie outside the volume.
    """
    for table in positions.values():
        if len(table) and not ((table >= 0) & (table < grid.shape)).all():
            raise LungmillError(f"{patient}: positions lie outside the volume {tuple(grid.shape)}: remake the mask")
    size = np.array(_in_3d(_patch_shape(shape)))
    nodule_centres = np.array([grid.to_index(n.centre_mm) for n in nodules or []]).reshape(-1, 3)
    nodule_centres = np.floor(nodule_centres + 0.5).astype(np.int64)
    inside = ((nodule_centres >= 0) & (nodule_centres < grid.shape)).all(axis=1)
    nodule_centres, outside = nodule_centres[inside], int((~inside).sum())
    centres = {}
    for name in ("lung", "background"):
        table = clear_of(positions[name], nodule_centres, size)
        chosen = class_rng(seed, patient, name).choice(len(table), min(per_class, len(table)), replace=False)
        centres[name] = table[np.sort(chosen)]
    if nodules is not None:
        rng = class_rng(seed, patient, "nodule")
        centres["nodule"] = _draw_around(nodule_centres, size, grid.shape, per_class, rng)
    return centres, outside


def clear_of(table, points, size):
    """The rows of a table of centres, (n, 3), whose patch of `size` voxels contains none of the points, (m, 3)."""
    keep = np.ones(len(table), bool)
    for point in points:
        start = table - size // 2
        keep &= ~((start <= point) & (point < start + size)).all(axis=1)
    return table[keep]


def crop_center(array, shape, centre=None, fill=AIR_HU):
    """Cut an array of exactly `shape` out of `array` around the voxel `centre`, with `fill` beyond the edges.

    array: NumPy, memory-mapped, zarr or HDF5, of any number of axes; only what is cut is read. centre: one index per
    axis, rounded to the nearest voxel, which becomes the voxel `shape // 2` of the result and may lie outside; None is
    the middle, `array.shape // 2`. Returns a new NumPy array of the same dtype. Raises ValueError where the number of
    axes differs or `fill` does not fit the dtype (a mask wants `fill=0`).
    """
    if centre is None:
        centre = [n // 2 for n in array.shape]
    centre = np.floor(np.asarray(centre) + 0.5).astype(int).tolist()
    if not len(shape) == len(centre) == len(array.shape):
        raise ValueError(f"an array of {len(array.shape)} axes needs as many in shape {shape} and centre {centre}")
    try:
        out = np.full(shape, fill, dtype=array.dtype)
    except OverflowError as error:
        raise ValueError(f"fill={fill} does not fit into {array.dtype}: give another (0 for a mask)") from error
    source, target = [], []
    for middle, size, n in zip(centre, shape, array.shape, strict=True):
        start = middle - size // 2
        first, last = min(max(start, 0), n), max(min(start + size, n), 0)
        source.append(slice(first, max(first, last)))
        target.append(slice(first - start, max(first, last) - start))
    if out.size and all(part.start < part.stop for part in source):
        out[tuple(target)] = array[tuple(source)]
    return out


def _patch_shape(shape):
    shape = tuple(int(n) for n in shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise LungmillError(f"patches.shape: {list(shape)} is not two or three numbers of voxels above 0")
    return shape


def _in_3d(shape):
    return (1, *shape) if len(shape) == 2 else shape


def _draw_around(centres, size, shape, number, rng):
    """Centres of `number` patches that contain one of the nodule centres each, shared out among them."""
    if len(centres) == 0:
        return np.empty((0, 3), np.int32)
    which = np.resize(rng.permutation(len(centres)), number)
    shift = rng.integers(-(size // 4), size // 4, endpoint=True, size=(number, 3))
    shift[: len(centres)] = 0
    # Back into the volume: that moves a patch towards its nodule, never away from it.
    found = np.clip(centres[which] + shift, 0, np.array(shape) - 1).astype(np.int32)
    return found[np.lexsort(found.T[::-1])]
