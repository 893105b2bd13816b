"""The patient in the scan, on blocks of about 2 mm: field of view, body, and the air that the body encloses."""

from dataclasses import dataclass

import numpy as np

from lungmill.regions import block_factors, block_mean, components, dilate, enclosing_sides, largest_component, opened

BLOCK_MM = 2.0
PADDING_HU = -1024
# Air that touches the border is the room below this mean HU, and a lung cut by the field of view above it.
ROOM_AIR_HU = -950
SURROUNDED_SHARE = 0.3
# A ball of this radius fits into chest wall and arms, not into a table, a blanket or a cable.
BODY_RADIUS_MM = 4.0


@dataclass(frozen=True)
class Blocks:
    """The volume in blocks of about 2 mm: mean HU, edges in voxels and in mm."""

    hu: np.ndarray
    factors: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    @classmethod
    def of(cls, volume, spacing_mm):
        """Average a volume, int16 HU [z, y, x], in blocks of about 2 mm."""
        factors = block_factors(spacing_mm, BLOCK_MM)
        edges = tuple(mm * factor for mm, factor in zip(spacing_mm, factors, strict=True))
        return cls(block_mean(volume, *factors), factors, edges)

    @property
    def ml(self):
        """Volume of one block."""
        return float(np.prod(self.spacing_mm)) / 1000


def find_padding(blocks):
    """Blocks outside the scanner's field of view: exactly padding and joined to an in-plane border, and their rim.

    The rim mixes padding with tissue. It looks like air, and would join a lung that the field of view cuts to the room.
    """
    labels, counts = components(blocks.hu <= PADDING_HU)
    padding = _touching_border(labels, len(counts))[labels]
    return dilate(padding, blocks.spacing_mm, 1.01 * max(blocks.spacing_mm[1:]))


def _touching_border(labels, count):
    touching = np.zeros(count, bool)
    for plane in (labels[:, 0], labels[:, -1], labels[:, :, 0], labels[:, :, -1]):
        touching[plane.ravel()] = True
    touching[0] = False
    return touching


def find_body(blocks, threshold_hu):
    """The patient without table and blankets: the largest thing that stays when thin sheets are taken away."""
    return largest_component(opened(blocks.hu >= threshold_hu, blocks.spacing_mm, BODY_RADIUS_MM))


def enclosed_air(blocks, air, padding, body):
    """Air inside the body: components that the body surrounds, less those that are the room.

    Padding counts as a wall. A lung cut by the field of view then stays apart from the room, touches the border as the
    room does, and differs from it by its HU. A component with a good share of blocks that see the body on three sides
    is surrounded, even where the field of view cuts it; foam in a table sees the body on one side.
    """
    labels, counts = components(air)
    touching = _touching_border(labels, len(counts))
    for here, beside in in_plane_neighbours(labels, padding):
        touching[here[beside]] = True
    total = np.maximum(counts, 1)
    mean = np.bincount(labels.ravel(), weights=blocks.hu.ravel()) / total
    surrounded = np.bincount(labels[enclosing_sides(body) >= 3], minlength=len(counts)) / total
    keep = ~(touching & (mean < ROOM_AIR_HU)) & (surrounded >= SURROUNDED_SHARE)
    keep[0] = False
    return keep[labels]


def in_plane_neighbours(one, other):
    """Pairs of views in which every element of `one` meets its neighbours in `other`, in four directions."""
    for axis in (1, 2):
        low = (slice(None),) * axis + (slice(None, -1),)
        high = (slice(None),) * axis + (slice(1, None),)
        yield one[low], other[high]
        yield one[high], other[low]


def body_midline(body, air):
    """The x index halfway between the body's sides, the median over the slices with air inside; else the middle."""
    slices = np.flatnonzero(air.any(axis=(1, 2)) & body.any(axis=(1, 2)))
    if not len(slices):
        return 0.5 * (body.shape[2] - 1)
    columns = body[slices].any(axis=1)
    right = columns.argmax(axis=1)
    left = columns.shape[1] - 1 - columns[:, ::-1].argmax(axis=1)
    return float(np.median(0.5 * (right + left)))


def middle_z(air):
    per_slice = air.sum(axis=(1, 2), dtype=np.int64)
    if not per_slice.any():
        return 0
    return int(np.searchsorted(np.cumsum(per_slice), per_slice.sum() / 2))
