"""Training patches of one patient: where they lie, how they are cut, and the file that holds them.

A patch of shape S around the voxel c covers the voxels c - S // 2 to c - S // 2 + S (the last one excluded) of each
axis: c is the voxel S // 2 of the patch, the exact middle for odd sizes and the one after the middle for even sizes.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from lungmill.errors import LungmillError
from lungmill.files import replacing
from lungmill.version import __version__

AIR_HU = -1024

MEANING = {
    "lung": "centre inside the lung mask",
    "background": "centre inside the body, outside the lung mask",
    "nodule": "contains the centre of an annotated nodule",
}


def cut_patches(path, volume, mask, grid, *, shape, per_class, nodules, seed, patient):
    """Write the patches of one patient to the HDF5 file `path`; return how many of each class there are, as a dict.

    volume: int16 HU and mask: uint8 labels, [z, y, x], memory-mapped or in memory. shape: of a patch in voxels; three
    numbers [z, y, x], or two [y, x] for patches out of axial slices. per_class: patches of each class; fewer where the
    class has fewer voxels. nodules: those of this patient (`lungmill.annotations.nodules_of`), or None where there are
    no annotations at all, and then there is no class `nodule`.

    The classes, by the voxel at the patch's centre:
    - `lung`: inside the mask. `background`: inside the body (`body_mask`) and outside the mask. Where nodules are
      given, no patch of these two contains the centre of one. A mask without lungs gives none of either: what is not
      lung is not known then.
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
    positions, outside = sample_positions(
        volume, mask, grid, shape=shape, per_class=per_class, nodules=nodules, seed=seed, patient=patient
    )
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        for name, centres in positions.items():
            dataset = file.create_dataset(
                name,
                shape=(len(centres), *shape),
                maxshape=(None, *shape),  # HDF5 refuses chunks of 1 in a fixed length of 0
                dtype=np.int16,
                chunks=(1, *shape),
                shuffle=True,
                compression="gzip",
                compression_opts=1,
            )
            dataset.attrs["meaning"] = MEANING[name]
            for i, centre in enumerate(centres):
                dataset[i] = crop_center(volume, _in_3d(shape), centre).reshape(shape)
            file[f"positions/{name}"] = centres
        file.attrs["classes"] = list(positions)
        file.attrs["patch_shape"] = shape
        file.attrs["spacing_mm"] = grid.spacing_mm
        file.attrs["origin_mm"] = grid.origin_mm
        file.attrs["seed"] = seed
        file.attrs["patient"] = patient
        file.attrs["nodules_outside"] = outside
        file.attrs["lungmill"] = __version__
    return {name: len(centres) for name, centres in positions.items()}


def sample_positions(volume, mask, grid, *, shape, per_class, nodules, seed, patient):
    """Draw the centres of patches for every class, as `cut_patches` describes.

    Returns a dict of int32 (N, 3) voxels [z, y, x], sorted, and the number of nodules that lie outside the volume.
    """
    if tuple(volume.shape) != tuple(grid.shape) or tuple(mask.shape) != tuple(grid.shape):
        raise LungmillError(
            f"{patient}: volume {tuple(volume.shape)}, mask {tuple(mask.shape)} and geometry {tuple(grid.shape)} do "
            f"not belong together: remake the volume and the mask"
        )
    size = np.array(_in_3d(_patch_shape(shape)))
    centres = np.array([grid.to_index(n.centre_mm) for n in nodules or []]).reshape(-1, 3)
    centres = np.floor(centres + 0.5).astype(np.int64)
    inside = ((centres >= 0) & (centres < grid.shape)).all(axis=1)
    centres, outside = centres[inside], int((~inside).sum())

    def draw(name, allowed):
        plane = _planes_of(allowed, centres, size)
        return _draw_voxels(plane, grid.shape[0], per_class, class_rng(seed, patient, name))

    positions = {"lung": draw("lung", lambda z: np.asarray(mask[z]) != 0), "background": np.empty((0, 3), np.int32)}
    if len(positions["lung"]) or mask.any():
        body = body_mask(volume, grid.spacing_mm)
        positions["background"] = draw("background", lambda z: body.plane(z) & (np.asarray(mask[z]) == 0))
    if nodules is not None:
        positions["nodule"] = _draw_around(centres, size, grid.shape, per_class, class_rng(seed, patient, "nodule"))
    return positions, outside


def class_rng(seed, patient, name):
    """A generator of random numbers that belongs to this seed, patient and class, and to nothing else."""
    digest = hashlib.sha256(f"{patient}\0{name}".encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, *np.frombuffer(digest, "<u4").tolist()]))


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


@dataclass(frozen=True)
class CoarseMask:
    """A mask in blocks of `step` voxels [z, y, x] for a volume of `shape`: `blocks` is bool, one value per block."""

    blocks: np.ndarray
    step: tuple[int, int, int]
    shape: tuple[int, int, int]

    def plane(self, z):
        """The slice z of the mask at the volume's resolution: bool [y, x]."""
        rows = np.repeat(self.blocks[z // self.step[0]], self.step[1], axis=0)[: self.shape[1]]
        return np.repeat(rows, self.step[2], axis=1)[:, : self.shape[2]]


def body_mask(volume, spacing_mm, *, threshold_hu=-500, step_mm=3.0):
    """Where the patient is, lungs and airways included, in blocks of about `step_mm`: a CoarseMask.

    One voxel in each block is read. What is above the threshold is opened by one block, so that a table or a blanket
    comes off the back; the largest connected part stays, and what it encloses within an axial slice is filled.
    """
    from scipy import ndimage

    step = tuple(max(1, round(step_mm / mm)) for mm in spacing_mm)
    samples = [np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(volume.shape, step, strict=True)]
    dense = np.stack([volume[z][np.ix_(*samples[1:])] for z in samples[0]]) > threshold_hu
    cross = ndimage.generate_binary_structure(3, 1)
    opened = np.pad(dense, 1, mode="edge")  # the scan ends within the body, so its ends must not be eroded
    labels, count = ndimage.label(ndimage.binary_opening(opened, cross)[1:-1, 1:-1, 1:-1], cross)
    blocks = np.zeros(dense.shape, bool)
    if count:
        largest = labels == 1 + np.argmax(np.bincount(labels.ravel())[1:])
        for z, plane in enumerate(largest):
            blocks[z] = ndimage.binary_fill_holes(plane)
    return CoarseMask(blocks, step, tuple(volume.shape))


def _patch_shape(shape):
    shape = tuple(int(n) for n in shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise LungmillError(f"patches.shape: {list(shape)} is not two or three numbers of voxels above 0")
    return shape


def _in_3d(shape):
    return (1, *shape) if len(shape) == 2 else shape


def _planes_of(allowed, centres, size):
    """Make out of `allowed(z)`, bool [y, x], the same without voxels whose patch would contain a nodule's centre."""
    boxes = [
        [slice(max(0, a), b) for a, b in zip(first, last, strict=True)]
        for first, last in zip(centres - (size - size // 2 - 1), centres + size // 2 + 1, strict=True)
    ]

    def plane(z):
        voxels = allowed(z)
        for in_z, in_y, in_x in boxes:
            if in_z.start <= z < in_z.stop:
                voxels[in_y, in_x] = False
        return voxels

    return plane


def _draw_voxels(plane, slices, number, rng):
    """Draw up to `number` different voxels, each as likely as any other: count per slice, choose, then locate."""
    counts = np.array([np.count_nonzero(plane(z)) for z in range(slices)])
    ends = np.cumsum(counts)
    ranks = np.sort(rng.choice(ends[-1], size=min(number, ends[-1]), replace=False)) if ends[-1] else np.empty(0, int)
    found = np.empty((len(ranks), 3), np.int32)
    found[:, 0] = np.searchsorted(ends, ranks, side="right")
    for z in np.unique(found[:, 0]):
        here = found[:, 0] == z
        voxels = plane(z)
        flat = np.flatnonzero(voxels)[ranks[here] - (ends[z] - counts[z])]
        found[here, 1], found[here, 2] = np.unravel_index(flat, voxels.shape)
    return found


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
