"""Writes int16 blocks in the format of pcodec (https://github.com/pcodec/pcodec, docs/format.md, format version 3).

The package `pcodec` reads it, and is what readers of a store need. It spends most of its time on finding how often each
number occurs, by sorting, and in which bin it lies, by bisection, since it must do so for floats and 64 bits as well.
Of 16 bits both are a look-up in a table.

Terms are those of the format: a *latent* is a difference of voxels, a *bin* a range of latents with a weight, an
*offset* what a latent lies above the lowest of its bin, and a *state* what the asymmetric numeral system (J. Duda,
https://arxiv.org/abs/0902.0271) passes from one latent to the next. Bins and weights are chosen in integers, so that
the bytes are the same on every machine.
"""

import math

import numpy as np
from numba import njit

MID = 1 << 15  # what is added to a signed number, or difference, of 16 bits to keep it in order without a sign
BATCH = 256  # latents whose bins are written together, followed by their offsets
MOST_IN_CHUNK = 1 << 18  # numbers with bins of their own; the format has room for 2**24
LARGEST_STATE_LOG = 12  # of the table of states: 4096 are decoded from the processor's nearest cache

# 2**16 times the logarithm to base 2 of 1, 1 + 1/256 .. 2
LOG2 = np.array([round(65536 * math.log2(1 + i / 256)) for i in range(257)], np.int64)


def encode(block, level, order=None):
    """The bytes of an int16 array in C order, for `pcodec.standalone.simple_decompress`.

    level: 0 to 9; bins are chosen from about 2**(level + 1), which gives files as large as those of the package at the
    same level. order: of the differences, 0 to 2; None takes 1 or 2, whichever take fewer bits.
    """
    numbers = block.reshape(-1)
    parts = [b"pco!\x02", _hint(numbers.size), b"\x03"]
    count = max(1, -(-numbers.size // MOST_IN_CHUNK))
    for part in np.array_split(numbers, count):
        if part.size:
            head, size, body = encode_chunk(part, best_order(part) if order is None else order, 2 << level)
            parts += [b"\x08", (part.size - 1).to_bytes(3, "little"), head.tobytes(), body.view(np.uint8)[:size]]
    return b"".join([*parts, b"\0"])


def _hint(n):
    """How many numbers will come, after the count of bits that this takes."""
    bits = max(1, n.bit_length())
    return ((bits - 1) | n << 6).to_bytes(-(-(6 + bits) // 8), "little")


@njit(cache=True, nogil=True)
def best_order(numbers):
    """1 or 2: of which order the differences of some stretches all over `numbers` take fewer bits."""
    first = second = 0
    for start in range(2, numbers.size - 64, 4160):
        for i in range(start, start + 64):
            step = np.int64(numbers[i]) - numbers[i - 1]
            first += _bits(abs(step))
            second += _bits(abs(step - (np.int64(numbers[i - 1]) - numbers[i - 2])))
    return 1 if first < second else 2


@njit(cache=True, nogil=True)
def encode_chunk(numbers, order, most_bins):
    """The description of the chunk and the head of its page, uint8; the size of the page in bytes; the page, uint32."""
    if numbers.size <= order:
        order = 0
    latents, counts, moments = _latents(numbers, order)
    lowest, highest = latents.min(), latents.max()
    lowers, uppers, sizes = _merged(*_narrow_bins(counts, lowest, highest, latents.size, most_bins))
    offset_bits = np.empty(lowers.size, np.uint8)
    for b in range(lowers.size):
        offset_bits[b] = _bits(uppers[b] - lowers[b])
    weights, state_log = _weights(sizes, latents.size)
    states, size, page = _page(latents, lowest, lowers, uppers, offset_bits, weights, state_log)
    return _head(order, moments, lowers, offset_bits, weights, state_log, states), size, page


@njit(cache=True, nogil=True)
def _latents(numbers, order):
    """Differences as uint16, how often each value occurs, and the first number and the first difference."""
    latents = np.empty(numbers.size - order, np.uint16)
    moments = np.zeros(order, np.uint16)
    if order == 0:
        for i in range(latents.size):
            latents[i] = numbers[i] + MID
    elif order == 1:
        moments[0] = numbers[0] + MID
        for i in range(latents.size):
            latents[i] = numbers[i + 1] - numbers[i] + MID
    else:
        moments[0] = numbers[0] + MID
        moments[1] = numbers[1] - numbers[0]
        for i in range(latents.size):
            latents[i] = numbers[i + 2] - 2 * np.int32(numbers[i + 1]) + numbers[i] + MID
    counts = np.zeros((2, 1 << 16), np.uint32)  # two, since adding twice to one place must wait for the first
    for i in range(0, latents.size - 1, 2):
        counts[0, latents[i]] += 1
        counts[1, latents[i + 1]] += 1
    if latents.size % 2:
        counts[0, latents[-1]] += 1
    return latents, counts[0] + counts[1], moments


@njit(cache=True, nogil=True)
def _narrow_bins(counts, lowest, highest, total, most):
    """At most about `most` bins of about as many latents each; a value that is frequent enough has one of its own."""
    enough = max(1, total // most)
    lowers = np.empty(2 * most + 2, np.int64)
    uppers = np.empty(2 * most + 2, np.int64)
    sizes = np.zeros(2 * most + 2, np.int64)
    n = 0
    is_open = False
    for value in range(lowest, highest + 1):
        count = np.int64(counts[value])
        if count == 0:
            continue
        if is_open and count >= enough:
            n += 1
            is_open = False
        if not is_open:
            lowers[n] = value
            is_open = True
        uppers[n] = value
        sizes[n] += count
        if sizes[n] >= enough:
            n += 1
            is_open = False
    n += is_open
    return lowers[:n], uppers[:n], sizes[:n]


@njit(cache=True, nogil=True)
def _merged(lowers, uppers, sizes):
    """Neighbours made one wherever that takes fewer bits in all: exactly the best choice, by dynamic programming."""
    n = lowers.size
    total = sizes.sum()
    described = (LARGEST_STATE_LOG + 16 + 5) << 16  # what the description of one more bin takes
    bits = np.empty(n + 1, np.int64)  # of the bins before this one, in 2**-16 bits
    bits[0] = 0
    first = np.empty(n, np.int64)  # where the bin that ends here begins, if one does
    for last in range(n):
        fewest = np.int64(1) << 62
        inside = 0
        for start in range(last, -1, -1):
            inside += sizes[start]
            offset = _bits(uppers[last] - lowers[start]) << 16
            needed = bits[start] + described + inside * (_log2(total) - _log2(inside) + offset)
            if needed < fewest:
                fewest = needed
                first[last] = start
        bits[last + 1] = fewest
    kept = 0
    last = n - 1
    while last >= 0:  # from the end: the bins are put where they were, since there are fewer of them
        kept += 1
        start = first[last]
        lowers[n - kept] = lowers[start]
        uppers[n - kept] = uppers[last]
        sizes[n - kept] = sizes[start : last + 1].sum()
        last = start - 1
    return lowers[n - kept :], uppers[n - kept :], sizes[n - kept :]


@njit(cache=True, nogil=True)
def _weights(sizes, total):
    """How many states each bin gets, at least one and in proportion to its size, and the logarithm of their number."""
    if sizes.size == 1:
        return np.ones(1, np.int64), 0
    state_log = min(LARGEST_STATE_LOG, _bits(sizes.size - 1) + 5)
    while 1 << state_log < 2 * sizes.size:
        state_log += 1
    weights = np.maximum(1, (sizes << state_log) // total)
    missing = (1 << state_log) - weights.sum()
    while missing != 0:
        best = -1
        for b in range(sizes.size):
            if missing > 0:  # one more where latents per state are most
                if best < 0 or sizes[b] * weights[best] > sizes[best] * weights[b]:
                    best = b
            elif weights[b] > 1 and (best < 0 or sizes[b] * weights[best] < sizes[best] * weights[b]):
                best = b
        weights[best] += 1 if missing > 0 else -1
        missing -= 1 if missing > 0 else -1
    return weights, state_log


@njit(cache=True, nogil=True)
def _page(latents, lowest, lowers, uppers, offset_bits, weights, state_log):
    """The four states to begin reading with, and the latents in batches: size in bytes, little-endian uint32.

    A numeral system is read in the reverse order of writing, so this begins at the end of the last batch and adds each
    number below the bits that are there. Afterwards all of them are moved to where a byte begins.
    """
    next_states, first, bits_added = _state_tables(weights, state_log)
    bins = np.empty(uppers[-1] - lowest + 1, np.uint16)
    for b in range(lowers.size):
        bins[lowers[b] - lowest : uppers[b] - lowest + 1] = b
    needs_states = lowers.size > 1
    found = np.empty(BATCH, np.uint16)
    words = np.empty(latents.size + 2, np.uint32)  # up to 14 + 16 bits for each
    at = words.size
    held, filled = np.uint64(0), np.uint64(0)
    states = np.full(4, 1 << state_log, np.int64)
    for batch in range((latents.size - 1) // BATCH * BATCH, -1, -BATCH):
        count = min(BATCH, latents.size - batch)
        for i in range(count - 1, -1, -1):
            latent = np.int64(latents[np.uintp(batch + i)])
            b = bins[np.uintp(latent - lowest)]
            found[np.uintp(i)] = b
            held = (held << np.uint64(offset_bits[b])) | np.uint64(latent - lowers[b])
            filled += np.uint64(offset_bits[b])
            if (filled >= 32) & (i & 1 == 0):
                at -= 1
                filled -= np.uint64(32)
                words[np.uintp(at)] = held >> filled
        if needs_states:
            for i in range(count - 1, count // 4 * 4 - 1, -1):
                b = found[np.uintp(i)]
                state = states[np.uintp(i & 3)]
                n = np.uint64((state + bits_added[b]) >> 16)
                held = (held << n) | (np.uint64(state) & ((np.uint64(1) << n) - np.uint64(1)))
                filled += n
                states[np.uintp(i & 3)] = next_states[np.uintp(first[b] + (state >> n))]
                if filled >= np.uint64(32):
                    at -= 1
                    filled -= np.uint64(32)
                    words[np.uintp(at)] = held >> filled
            s0, s1, s2, s3 = states
            for i in range(count // 4 * 4 - 4, -4, -4):
                b3 = found[np.uintp(i + 3)]
                b2 = found[np.uintp(i + 2)]
                b1 = found[np.uintp(i + 1)]
                b0 = found[np.uintp(i)]
                n3 = np.uint64((s3 + bits_added[b3]) >> 16)
                n2 = np.uint64((s2 + bits_added[b2]) >> 16)
                n1 = np.uint64((s1 + bits_added[b1]) >> 16)
                n0 = np.uint64((s0 + bits_added[b0]) >> 16)
                held = (held << n3) | (np.uint64(s3) & ((np.uint64(1) << n3) - np.uint64(1)))
                held = (held << n2) | (np.uint64(s2) & ((np.uint64(1) << n2) - np.uint64(1)))
                filled += n3 + n2
                if filled >= 32:
                    at -= 1
                    filled -= np.uint64(32)
                    words[np.uintp(at)] = held >> filled
                held = (held << n1) | (np.uint64(s1) & ((np.uint64(1) << n1) - np.uint64(1)))
                held = (held << n0) | (np.uint64(s0) & ((np.uint64(1) << n0) - np.uint64(1)))
                filled += n1 + n0
                if filled >= 32:
                    at -= 1
                    filled -= np.uint64(32)
                    words[np.uintp(at)] = held >> filled
                s3 = next_states[np.uintp(first[b3] + (s3 >> n3))]
                s2 = next_states[np.uintp(first[b2] + (s2 >> n2))]
                s1 = next_states[np.uintp(first[b1] + (s1 >> n1))]
                s0 = next_states[np.uintp(first[b0] + (s0 >> n0))]
            states[0], states[1], states[2], states[3] = s0, s1, s2, s3
    size = (32 * (words.size - at) + np.int64(filled) + 7) // 8
    held &= (np.uint64(1) << filled) - np.uint64(1)
    for i in range(words.size - at):
        held |= np.uint64(words[at + i]) << filled
        words[i] = held
        held >>= np.uint64(32)
    words[words.size - at] = held
    return states - (1 << state_log), size, words


@njit(cache=True, nogil=True)
def _state_tables(weights, state_log):
    """What to write a bin with: where to go from a state, and how many bits of the state to write before.

    A state lies between 2**state_log and twice that. With the n bits that bring it between the bin's weight and twice
    that written, the next one is `next_states[first[bin] + (state >> n)]`, and n is `(state + bits_added[bin]) >> 16`
    (Y. Collet, https://fastcompression.blogspot.com/2014/02/fse-distributing-symbol-values.html).
    """
    count = 1 << state_log
    stride = 3 * count // 5 | 1  # the format's; it spreads the states of a bin over the table
    bin_of = np.empty(count, np.int64)
    step = 0
    for b in range(weights.size):
        for _ in range(weights[b]):
            bin_of[stride * step & (count - 1)] = b
            step += 1
    begin = np.zeros(weights.size, np.int64)
    bits_added = np.empty(weights.size, np.int64)
    for b in range(weights.size):
        if b > 0:
            begin[b] = begin[b - 1] + weights[b - 1]
        most = state_log - _bits(weights[b] - 1) + 1 if weights[b] > 1 else state_log
        bits_added[b] = (most << 16) - (weights[b] << most)
    next_states = np.empty(count, np.int64)
    used = begin.copy()
    for state in range(count):
        next_states[used[bin_of[state]]] = count + state
        used[bin_of[state]] += 1
    return next_states, begin - weights, bits_added


@njit(cache=True, nogil=True)
def _head(order, moments, lowers, offset_bits, weights, state_log, states):
    """The chunk's description and the head of its page, each filled up to a whole byte."""
    head = np.zeros(32 + 5 * lowers.size, np.uint8)
    at = _put(head, 0, 0, 4)  # mode: the numbers as they are
    if order == 0:
        at = _put(head, at, 0, 4)
    else:
        at = _put(head, at, 1, 4)
        at = _put(head, at, order, 4)
    at = _put(head, at, state_log, 4)
    at = _put(head, at, lowers.size, 15)
    for b in range(lowers.size):
        at = _put(head, at, weights[b] - 1, state_log)
        at = _put(head, at, lowers[b], 16)
        at = _put(head, at, offset_bits[b], 5)
    at = (at + 7) // 8 * 8
    for moment in moments:
        at = _put(head, at, moment, 16)
    for state in states:
        at = _put(head, at, state, state_log)
    return head[: (at + 7) // 8]


@njit(cache=True, nogil=True)
def _put(out, at, value, bits):
    """Add the lowest `bits` of `value` from bit `at` of `out` on; return where the next will begin."""
    for i in range(bits):
        out[(at + i) >> 3] |= ((value >> i) & 1) << ((at + i) & 7)
    return at + bits


@njit(cache=True, nogil=True)
def _bits(value):
    """How many bits a number takes that is not negative."""
    bits = 0
    while value:
        value >>= 1
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _log2(value):
    """2**16 times the logarithm to base 2 of a positive number, to 2**-10."""
    exponent = _bits(value) - 1
    mantissa = value >> (exponent - 8) if exponent >= 8 else value << (8 - exponent)
    return (exponent << 16) + LOG2[mantissa - 256]
