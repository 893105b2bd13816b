"""Shapes on bits: boolean arrays packed 64 voxels to a word, where balls and floods cost little.

A grid of blocks is half a megabyte then and stays in the cache. `dilate`, `erode`, `opened` and `fill_enclosed` take
and give boolean arrays; packing is NumPy's own.
"""

import numpy as np
from numba import njit

WORD = 64


def pack(mask):
    """Pack a bool array [z, y, x] along x: uint64 [z, y, words]; bits beyond the last voxel are 0."""
    nz, ny, nx = mask.shape
    words = np.zeros((nz, ny, -(-nx // WORD)), "<u8")
    words.view(np.uint8)[:, :, : -(-nx // 8)] = np.packbits(mask, axis=2, bitorder="little")
    return words


def unpack(words, width):
    """The bool array [z, y, x] that `pack` made words of; `width` is its length along x."""
    return np.unpackbits(words.view(np.uint8), axis=2, count=width, bitorder="little").view(bool)


def dilate(mask, spacing_mm, radius_mm):
    """Voxels within `radius_mm` of a True one (ball, centre to centre)."""
    return unpack(_dilated(pack(mask), spacing_mm, radius_mm, mask.shape[2]), mask.shape[2])


def erode(mask, spacing_mm, radius_mm):
    """Voxels farther than `radius_mm` from any False one; the ends of the array do not erode."""
    if radius_mm < min(spacing_mm):
        return mask
    return ~dilate(~mask, spacing_mm, radius_mm)


def opened(mask, spacing_mm, radius_mm):
    """The parts of a boolean array that a ball of `radius_mm` fits into."""
    width = mask.shape[2]
    whole = pack(mask)
    if radius_mm < min(spacing_mm):
        return mask
    core = ~_dilated(~whole & _row_mask(width), spacing_mm, radius_mm, width) & _row_mask(width)
    return unpack(_dilated(core, spacing_mm, radius_mm, width) & whole, width)


def _row_mask(width):
    """The words of a row of `width` voxels, all True."""
    return pack(np.ones((1, 1, width), bool))[0, 0]


def ball_rows(spacing_mm, radius_mm):
    """The rows of a ball, int64 (n, 3): dz, dy, and how many voxels it reaches along x on either side.

    They are sorted by that reach, the first being the shortest.
    """
    limit = radius_mm**2 + 1e-3
    mz, my, mx = spacing_mm
    nz, ny = int(limit**0.5 / mz), int(limit**0.5 / my)
    dz, dy = np.mgrid[-nz : nz + 1, -ny : ny + 1].reshape(2, -1)
    left = limit - (dz * mz) ** 2 - (dy * my) ** 2
    inside = left >= 0
    reach = np.sqrt(left[inside]) / mx
    rows = np.stack([dz[inside], dy[inside], reach.astype(np.int64)], axis=1)
    return rows[np.argsort(rows[:, 2], kind="stable")]


def _dilated(words, spacing_mm, radius_mm, width):
    out = np.zeros_like(words)
    _spread_bits(words, ball_rows(spacing_mm, radius_mm), out)
    out &= _row_mask(width)
    return out


@njit(cache=True, nogil=True)
def _spread_bits(words, ball, out):
    """Set the bits of `out` that lie in the ball around any bit of `words`; those beyond a row's end may be set too."""
    nz, ny, nw = words.shape
    plane, grown = np.empty((ny, nw), np.uint64), np.empty((ny, nw), np.uint64)
    one, last = np.uint64(1), np.uint64(63)
    for z in range(nz):
        low, high = ny, 0
        for y in range(ny):
            for w in range(nw):
                plane[y, w] = words[z, y, w]
                if plane[y, w]:
                    low, high = min(low, y), y + 1
        if low >= high:
            continue
        reach = 0
        for n in range(len(ball)):
            while reach < ball[n, 2]:
                reach += 1
                for y in range(low, high):
                    for w in range(nw):
                        here = plane[y, w]
                        more = here | (here << one) | (here >> one)
                        if w:
                            more |= plane[y, w - 1] >> last
                        if w + 1 < nw:
                            more |= plane[y, w + 1] << last
                        grown[y, w] = more
                plane, grown = grown, plane
            k, dy = z + ball[n, 0], ball[n, 1]
            first, stop = max(low, -dy), min(high, ny - dy)
            if 0 <= k < nz and first < stop:
                to = out[k, first + dy : stop + dy].reshape(-1)
                by = plane[first:stop].reshape(-1)
                for i in range(len(to)):
                    to[i] |= by[i]


def fill_enclosed(mask):
    """Fill what a boolean array encloses in at least two of the three families of planes.

    A vessel or a nodule on a stalk is no hole in 3-D, as it hangs on to the hilum, yet planes across it are rings.
    The dome of the liver is enclosed in axial planes only, so one family of planes is not enough. What is enclosed in
    3-D, by then, is enclosed in all three.
    """
    width = mask.shape[2]
    words, row = pack(mask), _row_mask(width)
    for needed in (2, 3):
        free = ~words & row
        axial, coronal, sagittal = np.zeros_like(free), np.zeros_like(free), np.zeros_like(free)
        _flood_planes(free, width, axial, coronal, sagittal)
        # Open in one family at most, so enclosed in two; then open in none.
        twice = (axial & coronal) | (axial & sagittal) | (coronal & sagittal)
        words |= free & ~(twice if needed == 2 else axial | coronal | sagittal)
    return unpack(words, width)


@njit(cache=True, nogil=True)
def _flood_planes(free, width, axial, coronal, sagittal):
    """Mark the free bits that a path of free ones within a plane joins to the plane's border, for each family."""
    nz, ny, nw = free.shape
    for z in range(nz):
        _flood_rows(free[z], width, axial[z])
    rows, reached = np.empty((nz, nw), np.uint64), np.empty((nz, nw), np.uint64)
    for y in range(ny):
        rows[:] = free[:, y]
        reached[:] = np.uint64(0)
        _flood_rows(rows, width, reached)
        coronal[:, y] = reached
    # Planes along z and y: 64 of them in a word, flooded at once.
    for z in range(nz):
        for y in range(ny):
            if z == 0 or y == 0 or z + 1 == nz or y + 1 == ny:
                sagittal[z, y] = free[z, y]
    again = True
    while again:
        again = False
        for turn in range(2):
            for i in range(nz):
                z = nz - 1 - i if turn else i
                for j in range(ny):
                    y = ny - 1 - j if turn else j
                    for w in range(nw):
                        here = sagittal[z, y, w]
                        more = here
                        if turn:
                            if z + 1 < nz:
                                more |= sagittal[z + 1, y, w]
                            if y + 1 < ny:
                                more |= sagittal[z, y + 1, w]
                        else:
                            if z:
                                more |= sagittal[z - 1, y, w]
                            if y:
                                more |= sagittal[z, y - 1, w]
                        more &= free[z, y, w]
                        if more != here:
                            sagittal[z, y, w] = more
                            again = True


@njit(cache=True, nogil=True)
def _flood_rows(free, width, reached):
    """Flood one plane of rows of bits from its border, in place."""
    rows, nw = free.shape
    end = np.uint64(1) << np.uint64((width - 1) & 63)
    for r in range(rows):
        if r == 0 or r + 1 == rows:
            reached[r] = free[r]
        else:
            reached[r, 0] |= free[r, 0] & np.uint64(1)
            reached[r, nw - 1] |= free[r, nw - 1] & end
            _flood_row(free[r], reached[r])
    again = True
    while again:
        again = False
        for turn in range(2):
            for i in range(1, rows):
                r, beside = (rows - 1 - i, rows - i) if turn else (i, i - 1)
                new = False
                for w in range(nw):
                    more = reached[r, w] | (reached[beside, w] & free[r, w])
                    new |= more != reached[r, w]
                    reached[r, w] = more
                if new:
                    again = True
                    _flood_row(free[r], reached[r])


@njit(cache=True, nogil=True)
def _flood_row(free, reached):
    """Spread the reached bits of a row over the runs of free ones that they lie in."""
    one, last, none = np.uint64(1), np.uint64(63), np.uint64(0)
    carry = none
    for w in range(len(free)):
        here = reached[w] | (free[w] & carry)
        # An addition carries from a run's lowest reached bit to its end, and clears what it passes.
        here |= free[w] & ~(free[w] + here)
        reached[w] = here
        carry = here >> last
    carry = none
    for i in range(len(free)):
        w = len(free) - 1 - i
        here, room = reached[w] | (free[w] & (carry << last)), free[w]
        for shift in (1, 2, 4, 8, 16, 32):
            here |= room & (here >> np.uint64(shift))
            room &= room >> np.uint64(shift)
        reached[w] = here
        carry = here & one
