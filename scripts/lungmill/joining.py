"""Joining the results of runs that each took a part of a cohort: tables and the Zarr group; arrays stay where they are.

PYTHONPATH=scripts python -m lungmill.joining OUT PART PART ...
"""

import argparse
import os
import sys
from pathlib import Path

from lungmill.dataset import PRODUCTS
from lungmill.errors import LungmillError
from lungmill.files import read_tsv, replacing, write_tsv
from lungmill.packing import create_cohort_group

TABLES = ("cohort.tsv", "dataset.tsv")


def join_cohorts(out, parts):
    """Write a folder that `open_cohort` opens as one cohort of all patients of `parts`; returns their number.

    out: a new folder, or one that was joined before and is written again. parts: folders of results of finished runs.
    Holds `cohort.tsv` and `dataset.tsv` with the rows of all parts, the paths of products relative to `out`, and, where
    parts have one, the group `cohort.zarr` with a relative link to every patient's. Nothing is copied: keep the parts
    where they are. A patient's split is the same as in one run over everybody, since it depends on its name alone.

    Raises LungmillError where a part is not finished, or two of them hold the same patient, and OSError where the file
    system has no links.
    """
    out, parts = Path(out), [Path(part) for part in parts]
    for name in TABLES:
        columns, rows, whose = [], [], {}
        for part in parts:
            for row in _rows(part, name):
                patient = row["patient"]
                if patient in whose:
                    raise LungmillError(
                        f"{patient} is in {whose[patient]} and in {part}: patients need names of their own"
                    )
                whose[patient] = part
                columns += [column for column in row if column not in columns]
                rows.append(_moved(row, part, out) if name == "dataset.tsv" else row)
        write_tsv(out / name, _in_order(columns), rows)
        if name == "dataset.tsv":
            _join_groups(out, {row["patient"]: whose[row["patient"]] for row in rows if row.get("zarr")})
    return len(_rows(out, "cohort.tsv"))


def _rows(part, name):
    try:
        return read_tsv(part / name)
    except FileNotFoundError:
        raise LungmillError(f"{part} has no {name}: run snakemake there to its end first") from None


def _moved(row, part, out):
    """A row of dataset.tsv with its paths relative to another folder; of Zarr, to the joined group."""
    paths = {name: os.path.relpath(part / row[name], out) for name in PRODUCTS if row.get(name)}
    if "zarr" in paths:
        paths["zarr"] = PRODUCTS["zarr"].format(row["patient"])
    return {**row, **paths}


def _in_order(columns):
    """Products in their usual order behind the other columns, whichever part came first."""
    return [name for name in columns if name not in PRODUCTS] + [name for name in PRODUCTS if name in columns]


def _join_groups(out, parts_of):
    """A Zarr group in which every patient is a relative link to its part's."""
    if not parts_of:
        return
    create_cohort_group(out / "cohort.zarr")
    for patient, part in parts_of.items():
        link = out / PRODUCTS["zarr"].format(patient)
        with replacing(link) as temporary:
            target = part / PRODUCTS["zarr"].format(patient)
            temporary.symlink_to(os.path.relpath(target, link.parent), target_is_directory=True)


def main():
    parser = argparse.ArgumentParser(description="Join the results of runs over parts of a cohort.")
    parser.add_argument("out", help="folder to write the joined tables and Zarr group to")
    parser.add_argument("parts", nargs="+", help="results folders of finished runs")
    options = parser.parse_args()
    try:
        count = join_cohorts(options.out, options.parts)
    except LungmillError as error:
        sys.exit(f"lungmill: {error}")
    print(f"{count} patients of {len(options.parts)} runs in {options.out}")


if __name__ == "__main__":
    main()
