"""Which class, patient and position each element of a patch source is: a function of the seed and its number alone.

Everything is drawn from endless sequences of permutations: n things in random order, then again all n in another order,
and so on. After any number of draws, no two things have been drawn a number of times that differs by more than one.
"""

import hashlib

import numpy as np

# Numbers drawn at a time: each block has a generator of its own, so that any place of a sequence can be looked up.
BLOCK = 4096


def key_of(seed, *words):
    """Entropy that belongs to this seed and these words, and to nothing else: a list of ints."""
    digest = hashlib.sha256("\0".join(words).encode()).digest()
    return [seed, *np.frombuffer(digest, "<u4").tolist()]


def shuffled_rounds(key, n, turns):
    """What an endless sequence of permutations of range(n) holds at the places `turns`.

    key: entropy that makes the sequence, as of `key_of`. turns: integers from 0, (m,). Returns int64 (m,).
    """
    turns = np.asarray(turns, np.int64)
    rounds = max(1, BLOCK // n)
    blocks, places = np.divmod(turns, rounds * n)
    found = np.empty(len(turns), np.int64)
    for block, which in _each(blocks):
        table = np.broadcast_to(np.arange(n), (rounds, n))
        found[which] = _generator(key, block).permuted(table, axis=1).reshape(-1)[places[which]]
    return found


def uniform(key, width, turns):
    """Numbers in [-1, 1), float64 (m, width), that belong to the places `turns` of an endless sequence."""
    turns = np.asarray(turns, np.int64)
    blocks, places = np.divmod(turns, BLOCK)
    found = np.empty((len(turns), width))
    for block, which in _each(blocks):
        found[which] = _generator(key, block).uniform(-1, 1, (BLOCK, width))[places[which]]
    return found


def draw_patients(seed, patients_of, start, stop):
    """The elements `start` to `stop` of the endless sequence that is balanced over classes and patients.

    patients_of: for each class the numbers of the patients that have it, int (n,), none empty.

    Returns for each element its class (int64), its patient (int32), and how often that patient was drawn for that class
    before (int64). Classes take turns, and so do the patients of a class, in an order that is random in every round.
    """
    elements = np.arange(start, stop)
    classes = shuffled_rounds(key_of(seed, "classes"), len(patients_of), elements)
    nth = elements // len(patients_of)  # every round has each class once
    patients, turns = np.empty(len(elements), np.int32), np.empty(len(elements), np.int64)
    for number, having in enumerate(patients_of):
        mine = np.flatnonzero(classes == number)
        patients[mine] = having[shuffled_rounds(key_of(seed, "patients", str(number)), len(having), nth[mine])]
        turns[mine] = nth[mine] // len(having)
    return classes, patients, turns


def _generator(key, block):
    return np.random.default_rng(np.random.SeedSequence([*key, int(block)]))


def _each(blocks):
    """Every block that occurs, and where."""
    for block in np.unique(blocks):
        yield block, np.flatnonzero(blocks == block)
