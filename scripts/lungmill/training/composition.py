"""Chains of transforms of volumes: all that move voxels in one interpolation, then all that change intensities."""

from dataclasses import dataclass

import numpy as np

from lungmill.errors import LungmillError
from lungmill.training.mapping import FILL_MODES, check_image, check_mask, map_arrays, round_into, swap_in_place
from lungmill.training.replay import Replayable, number, numbers

AIR_HU = -1024.0
SLAB_VOXELS = 2**16  # go through all intensity transforms at a time: they stay in the cache


class VolumeTransform(Replayable):
    """Base of the transforms of volumes: callable on an image, with or without its mask."""

    def __call__(self, image, mask=None, spacing_mm=(1.0, 1.0, 1.0), rng=None):
        """Transform a volume, and its mask in the same way.

        :param image: [z, y, x]; integers, float32 or float64. Computed in float32
        :param mask: None, or labels of the same shape
        :param spacing_mm: distances between voxels [z, y, x]
        :param rng: a NumPy Generator, a seed, or None; without meaning where all parameters are given
        :return: the transformed image, or (image, mask); new arrays of the same shapes and dtypes, integers rounded
        :raises LungmillError: shapes or dtypes that do not fit
        """
        return Compose((self,))(image, mask, spacing_mm, rng)

    def draw(self, rng=None):
        """Return the transform with its random parameters drawn; here there are none left."""
        return self


class Spatial(VolumeTransform):
    """A transform that moves voxels. Those of a `Compose` become one chain of coordinates."""

    def swaps(self):
        """Pairs of labels that the transform exchanges in the mask."""
        return ()

    def _links(self, shape, spacing):
        """From voxels of the result to voxels of the source: float64 (3, 4) matrices and elastic displacements."""
        raise NotImplementedError


class Pointwise(VolumeTransform):
    """A transform of each voxel's intensity by itself. Those of a `Compose` go over the image together."""

    def _change(self):
        """A function that changes a float32 slab in place; slabs come in order."""
        raise NotImplementedError


class Filter(VolumeTransform):
    """A transform of intensities that looks at neighbours: a pass of its own."""

    def _filter(self, values, spacing):
        """Change a whole float32 volume in place."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Compose(VolumeTransform):
    """Several transforms, random or not, as one.

    Those that move voxels come first, in their order, merged into a single interpolation; then those that change
    intensities, in their order, wherever they stand in the list. So noise and blur are never interpolated.

    fill_mode: beyond the volume's edges: `nearest` (the edge's voxel), `constant` (`cval` and, in the mask,
    `cval_mask`, from the centres of the outermost voxels on), `reflect` (d c b a | a b c d | d c b a) or `wrap`
    (a b c d | a b c d).
    """

    transforms: tuple[Replayable, ...] = ()
    fill_mode: str = "nearest"
    cval: float = AIR_HU
    cval_mask: float = 0.0

    def __post_init__(self):
        if self.fill_mode not in FILL_MODES:
            raise LungmillError(f"fill_mode={self.fill_mode!r} is none of {', '.join(FILL_MODES)}")
        self._hold(
            transforms=tuple(self.transforms),
            cval=number(self.cval, "cval"),
            cval_mask=number(self.cval_mask, "cval_mask"),
        )
        for transform in self.transforms:
            if not isinstance(transform, Replayable) or not hasattr(transform, "draw"):
                raise LungmillError(f"Compose: {transform!r} is no transform of volumes")
            if isinstance(transform, Compose) and transform._border() != self._border():
                raise LungmillError("Compose: a Compose within another needs the same fill_mode, cval and cval_mask")

    def draw(self, rng=None):
        """Return the chain with every random parameter drawn."""
        rng = np.random.default_rng(rng)
        return Compose(tuple(transform.draw(rng) for transform in self.transforms), *self._border())

    def __call__(self, image, mask=None, spacing_mm=(1.0, 1.0, 1.0), rng=None):
        image = check_image(image, "image")
        if image.ndim != 3:
            raise LungmillError(f"image has shape {image.shape}: give [z, y, x], and each channel by itself")
        if mask is not None:
            mask = check_mask(mask, "mask")
            if mask.shape != image.shape:
                raise LungmillError(f"image has shape {image.shape}, mask {mask.shape}: they must be the same")
        spacing = numbers(spacing_mm, "spacing_mm", 3, low=1e-6)
        steps = list(self.draw(rng)._flat())
        move = _Move([step for step in steps if isinstance(step, Spatial)], image.shape, spacing, self._border())
        result, labels = _change(image, mask, move, [s for s in steps if not isinstance(s, Spatial)], spacing)
        return result if mask is None else (result, labels)

    def _border(self):
        return self.fill_mode, self.cval, self.cval_mask

    def _flat(self):
        for transform in self.transforms:
            if isinstance(transform, Compose):
                yield from transform._flat()
            else:
                yield transform


class _Move:
    """The merged spatial transforms: a chain of matrices and elastic displacements, and labels to exchange."""

    def __init__(self, steps, shape, spacing, border):
        self.border = border
        self.swaps = [pair for step in steps for pair in step.swaps()]
        self.matrices, self.elastic = [np.eye(4)], []
        for step in reversed(steps):
            for link in step._links(shape, spacing):
                if isinstance(link, tuple):
                    self.elastic.append(link)
                    self.matrices.append(np.eye(4))
                else:
                    self.matrices[-1] = np.vstack([link, (0, 0, 0, 1)]) @ self.matrices[-1]
        self.flips = self._only_flips(shape)

    def _only_flips(self, shape):
        """The slices that do the same where nothing but flips is left, or None."""
        signs = np.diag(self.matrices[0])[:3]
        mirror = np.eye(4)
        mirror[range(3), range(3)] = signs
        mirror[:3, 3] = np.where(signs < 0, np.array(shape) - 1, 0)
        if self.elastic or set(signs.tolist()) - {1.0, -1.0} or not np.array_equal(mirror, self.matrices[0]):
            return None
        return tuple(slice(None, None, int(sign)) for sign in signs)

    def __call__(self, image, mask, start, out, out_mask):
        """Fill the planes `out` of the result from `start` on, and `out_mask` unless it is None."""
        if self.flips is not None:
            planes = slice(start, start + len(out))
            out[...] = image[self.flips][planes]
            if out_mask is not None:
                out_mask[...] = mask[self.flips][planes]
                swap_in_place(out_mask, self.swaps)
            return
        fill_mode, cval, cval_mask = self.border
        map_arrays(
            image[None],
            None if mask is None else mask[None],
            out[None],
            None if mask is None else out_mask[None],
            start=[start, 0, 0],
            matrices=np.array(self.matrices)[:, :3],
            elastic=self.elastic,
            fill_mode=fill_mode,
            cval_x=cval,
            cval_y=cval_mask,
            swaps=self.swaps,
        )


def _change(image, mask, move, intensity, spacing):
    """Move voxels, then change intensities: a pass over slabs, and one more for every filter."""
    groups, filters = [[]], []
    for step in intensity:
        if isinstance(step, Filter):
            filters.append(step)
            groups.append([])
        else:
            groups[-1].append(step._change())
    out = np.empty(image.shape, dtype=image.dtype)
    out_mask = None if mask is None else np.empty(mask.shape, dtype=mask.dtype)
    values = out if out.dtype == np.float32 or not filters else np.empty(image.shape, dtype=np.float32)
    in_place = values.dtype == np.float32 or not groups[0]
    for start, stop in _slabs(image.shape, bool(groups[0])):
        part = values[start:stop]
        slab = part if in_place else np.empty(part.shape, dtype=np.float32)
        move(image, mask, start, slab, None if mask is None else out_mask[start:stop])
        for change in groups[0]:
            change(slab)
        if slab is not part:
            round_into(part, slab)
    for step, changes in zip(filters, groups[1:], strict=True):
        step._filter(values, spacing)
        for start, stop in _slabs(image.shape, bool(changes)):
            for change in changes:
                change(values[start:stop])
    if values is not out:
        for start, stop in _slabs(image.shape, True):
            round_into(out[start:stop], values[start:stop])
    return out, out_mask


def _slabs(shape, split):
    """Ranges of planes of about SLAB_VOXELS, or all planes at once."""
    step = max(1, SLAB_VOXELS // (shape[1] * shape[2])) if split else shape[0]
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
