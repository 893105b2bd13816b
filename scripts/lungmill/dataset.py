"""The table that a training loop opens: a row per patient with its split, its label and where its arrays are."""

import hashlib
import math
from pathlib import Path

from lungmill.errors import ConfigError, LungmillError
from lungmill.files import read_json, write_tsv

SPLITS = ("train", "val", "test")

# What the workflow can make of a patient, and where in the results it lies.
PRODUCTS = {
    "volume": "volumes/{}.npy",
    "mask": "masks/{}.npy",
    "positions": "masks/{}.positions.npz",
    "zarr": "cohort.zarr/{}",
    "zarr_zip": "zarr/{}.zarr.zip",
    "bcolz": "bcolz/{}.bcolz",
    "hdf5": "hdf5/{}.h5",
    "npz": "npz/{}.npz",
    "patches": "patches/{}.h5",
}


def make_dataset(path, patients, *, products, fractions, seed):
    """Write `dataset.tsv`: columns patient, split, label and one per product, with paths relative to its folder.

    patients: dicts with `patient` and, where the user gave them, `split` and `label`; a row each, in this order.
    products: names out of `PRODUCTS`. A given split wins over the drawn one, which is `split_of(patient, fractions,
    seed)`. Raises ConfigError on fractions or splits that make no sense, LungmillError where a product is missing.
    """
    check_fractions(fractions)
    results = Path(path).parent
    columns = [name for name in PRODUCTS if name in products]
    rows = []
    for entry in patients:
        patient = entry["patient"]
        row = {"patient": patient, "split": entry.get("split") or split_of(patient, fractions, seed)}
        if row["split"] not in SPLITS:
            raise ConfigError(f"patients: {patient} has split {row['split']!r}: write one of {', '.join(SPLITS)}")
        row["label"] = entry.get("label")
        written = results / "products" / f"{patient}.json"
        elsewhere = read_json(written) if written.is_file() else {}
        for name in columns:
            row[name] = PRODUCTS[name].format(patient)
            if name not in elsewhere and not (results / row[name]).exists():
                raise LungmillError(f"{patient}: {results / row[name]} is missing: run the workflow to its end again")
        rows.append(row)
    write_tsv(path, ["patient", "split", "label", *columns], rows)


def split_of(patient, fractions, seed):
    """The split of a patient: "train", "val" or "test".

    A hash of seed and name gives a number in [0, 1), and the fractions, laid end to end, say which split that is. No
    other patient has a part in it, so adding or removing patients moves nobody; the fractions are met on average only.
    """
    check_fractions(fractions)
    digest = hashlib.sha256(f"{seed} {patient}".encode()).digest()
    draw = int.from_bytes(digest[:8], "big") / 2**64
    end = 0.0
    chosen = None
    for split in SPLITS:
        if fractions.get(split, 0) > 0:
            chosen = split  # so that the last split takes what rounding leaves
            end += fractions[split]
            if draw < end:
                break
    return chosen


def check_fractions(fractions):
    """Raise ConfigError unless `fractions` has numbers from 0 for train, val and test that make 1 together."""
    unknown = set(fractions) - set(SPLITS)
    if unknown:
        raise ConfigError(f"split.fractions: {', '.join(sorted(unknown))} is not one of {', '.join(SPLITS)}")
    for split, value in fractions.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ConfigError(f"split.fractions.{split}: {value!r} is not a number from 0 to 1")
    total = math.fsum(fractions.values())
    if abs(total - 1) > 1e-6:
        raise ConfigError(f"split.fractions: the sum of {fractions} is {total:g}, not 1: change one of them")
