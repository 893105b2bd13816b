"""Where training patches may be centred: a table of voxels per patient, drawn once, when the mask is made.

The training side reads the table here, so what draws it is imported where it is needed.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from lungmill.errors import LungmillError
from lungmill.files import replacing

MEANING = {
    "lung": "inside the lung mask",
    "pleura": "inside the lung mask, near its surface",
    "background": "inside the body, outside the lung mask",
}
# The table belongs to the patient and not to a run: what is drawn from it depends on the seed, the table does not.
TABLE_SEED = 0
BLOCK_MM = 4.0
# Share of the box below which looking at every voxel is quicker than drawing.
LEAST_SHARE = 0.005


def sampling_positions(volume, mask, spacing_mm, *, number, pleura_mm, patient, box=None):
    """Draw up to `number` voxels of each class, every voxel of a class being as likely as any other.

    volume: int16 HU and mask: uint8 labels, [z, y, x], memory-mapped or in memory; spacing_mm: (z, y, x).
    box: (start, stop) per axis around what is not zero in the mask, where that is known.

    Returns a dict of int32 (n, 3) voxels [z, y, x], sorted and each there once; n is less than `number` where the
    class has fewer voxels. The classes: `lung`, inside the mask; `pleura`, inside the mask and at most `pleura_mm` from
    what is outside it, to the nearest block of 4 mm; `background`, inside the body (`body_mask`) and outside the mask.
    All are empty where the mask is: what is not lung is not known then.
    """
    if tuple(volume.shape) != tuple(mask.shape):
        raise LungmillError(
            f"{patient}: volume {tuple(volume.shape)} and mask {tuple(mask.shape)} do not belong together: "
            f"remake the mask"
        )
    box = box or _box(mask)
    if box is None:
        return {name: np.empty((0, 3), np.int32) for name in MEANING}
    body, rim = body_mask(volume, spacing_mm), pleura_mask(mask, spacing_mm, pleura_mm, box)

    def lung(voxels):
        return mask[tuple(voxels.T)] != 0

    classes = {
        "lung": (box, lung),
        "pleura": (box, lambda voxels: lung(voxels) & rim.at(voxels)),
        "background": (body.box(), lambda voxels: body.at(voxels) & ~lung(voxels)),
    }
    return {
        name: draw_voxels(box, allowed, number, class_rng(TABLE_SEED, patient, name))
        for name, (box, allowed) in classes.items()
    }


def write_positions(path, positions):
    """Write a table of positions as an uncompressed .npz with one array per class; the same table, the same bytes."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **positions)


def read_positions(path):
    """Read what `write_positions` wrote: a dict of int32 (n, 3) voxels [z, y, x]."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def class_rng(seed, patient, name):
    """A generator of random numbers that belongs to this seed, patient and class, and to nothing else."""
    digest = hashlib.sha256(f"{patient}\0{name}".encode()).digest()
    return np.random.default_rng(np.random.SeedSequence([seed, *np.frombuffer(digest, "<u4").tolist()]))


def draw_voxels(box, allowed, number, rng):
    """Draw up to `number` different voxels out of a box, each allowed one as likely as any other.

    box: (start, stop) per axis, or None for no voxel at all. allowed: a function of int voxels (n, 3) that gives bool.
    Returns int32 (n, 3), sorted; n is less than `number` only where fewer are allowed.

    Voxels are drawn anywhere in the box and kept where they are allowed, which touches little of the array. Where that
    finds too few, all voxels are looked at, a slice at a time.
    """
    if box is None:
        return np.empty((0, 3), np.int32)
    low, high = np.transpose(box)
    voxels_in_box = np.prod(high - low, dtype=np.float64)
    found, drawn = np.empty((0, 3), np.int32), 0
    while True:
        voxels = rng.integers(low, high, size=(4 * number, 3), dtype=np.int32)
        found = np.concatenate([found, voxels[allowed(voxels)]])
        drawn += len(voxels)
        share = len(found) / drawn
        if share < LEAST_SHARE or share * voxels_in_box < 2 * number:
            break  # it would take long: too few are allowed, or almost all of them are wanted
        # One number for each voxel is sorted faster than three.
        _, first = np.unique(np.ravel_multi_index(tuple((found - low).T), high - low), return_index=True)
        if len(first) >= number:
            return _sorted(found[np.sort(first)[:number]])
    plane = np.stack(np.meshgrid([0], *(np.arange(*ends) for ends in box[1:]), indexing="ij"), axis=-1).reshape(-1, 3)
    slices = (plane + np.array((z, 0, 0)) for z in range(*box[0]))
    found = np.concatenate([voxels[allowed(voxels)] for voxels in slices])
    return _sorted(found[rng.choice(len(found), size=min(number, len(found)), replace=False)])


def _sorted(voxels):
    return voxels[np.lexsort(voxels.T[::-1])].astype(np.int32)


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

    def at(self, voxels):
        """The mask at voxels, int (n, 3) [z, y, x]: bool (n,)."""
        return self.blocks[tuple((voxels // self.step).T)]

    def box(self):
        """(start, stop) in voxels of each axis around what is inside; None where nothing is."""
        box = _box(self.blocks)
        return box and [
            (start * n, min(stop * n, size)) for (start, stop), n, size in zip(box, self.step, self.shape, strict=True)
        ]


def body_mask(volume, spacing_mm, *, threshold_hu=-500, step_mm=BLOCK_MM):
    """Where the patient is, lungs and airways included, in blocks of about `step_mm`: a CoarseMask.

    One voxel in each block is read. What is above the threshold is opened by one block, so that a table or a blanket
    comes off the back; the largest connected part stays, and what it encloses within an axial slice is filled.
    """
    from lungmill.bits import opened
    from lungmill.body import touching_border
    from lungmill.runs import components, largest_component

    sampled, step = _sampled(volume, spacing_mm, step_mm)
    # A block and its six neighbours, whatever shape blocks have. The scan ends within the body: its ends do not erode.
    largest = largest_component(opened(sampled > threshold_hu, (1.0, 1.0, 1.0), 1.0))
    around = components(~largest, in_plane=True)
    blocks = ~around.paint(touching_border(around)) if len(around) < largest.size and largest.any() else largest
    return CoarseMask(blocks, step, tuple(volume.shape))


def pleura_mask(mask, spacing_mm, pleura_mm, box, *, step_mm=BLOCK_MM):
    """Where the lungs' surface is at most `pleura_mm` away, in blocks of about `step_mm`: a CoarseMask.

    box: (start, stop) per axis around the lungs. The ends of the volume are no surface: a lung goes on beyond them.
    """
    from lungmill.bits import dilate

    sampled, step = _sampled(mask, spacing_mm, step_mm)
    blocks = np.zeros(sampled.shape, bool)
    part = tuple(slice(max(0, start // n - 1), stop // n + 2) for (start, stop), n in zip(box, step, strict=True))
    lungs = sampled[part] != 0
    if not lungs.all():
        block_mm = [mm * n for mm, n in zip(spacing_mm, step, strict=True)]
        blocks[part] = dilate(~lungs, block_mm, pleura_mm)
    return CoarseMask(blocks, step, tuple(mask.shape))


def _box(array):
    """(start, stop) of each axis around what is not zero; None where everything is."""
    from lungmill.morphology import bounding_box

    box = bounding_box(array)
    return box and [(part.start, part.stop) for part in box]


def _sampled(array, spacing_mm, step_mm):
    """The middle voxel of every block, and the edges of a block in voxels."""
    step = tuple(max(1, round(step_mm / mm)) for mm in spacing_mm)
    z, y, x = (np.minimum(np.arange(0, n, s) + s // 2, n - 1) for n, s in zip(array.shape, step, strict=True))
    return np.stack([array[k].take(y, axis=0).take(x, axis=1) for k in z]), step
