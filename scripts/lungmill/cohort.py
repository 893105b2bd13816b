"""A finished cohort, to look into from a notebook or a training loop."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np

from lungmill.dataset import SPLITS
from lungmill.errors import LungmillError
from lungmill.files import read_json, read_tsv
from lungmill.grid import Grid
from lungmill.patches import crop_center
from lungmill.positions import read_positions
from lungmill.zarr_reader import open_array, open_zarr

__all__ = ["Cohort", "Patient", "UnknownPatientError", "crop_center", "open_cohort"]


class UnknownPatientError(LungmillError, KeyError):
    """The cohort has no such patient; a KeyError too, as for every mapping."""

    __str__ = Exception.__str__  # KeyError's shows quotation marks around the message


def open_cohort(results):
    """Open the folder that the workflow wrote (`results:` in config.yaml) as a Cohort.

    Only `dataset.tsv` is read now. Raises LungmillError where the folder or that table does not exist.
    """
    results = Path(results)
    if not results.is_dir():
        siblings = [p.name for p in results.parent.iterdir() if p.is_dir()] if results.parent.is_dir() else []
        raise LungmillError(f"{results} is not a folder{_suggestion(results.name, siblings)}")
    table = results / "dataset.tsv"
    if not table.exists():
        raise LungmillError(f"{table} does not exist: run snakemake to its end, or give the folder of its results")
    return Cohort(results, {row["patient"]: row for row in read_tsv(table)})


class Cohort(Mapping):
    """The accepted patients by name, in the order of `dataset.tsv`: `for name in cohort`, `cohort[name].image`."""

    def __init__(self, results, rows):
        self.results = Path(results)
        self._rows = rows

    def __getitem__(self, patient):
        if patient not in self._rows:
            raise UnknownPatientError(self._why_missing(patient))
        return Patient(self.results, self._rows[patient])

    def __iter__(self):
        return iter(self._rows)

    def __len__(self):
        return len(self._rows)

    def __repr__(self):
        counts = [f"{sum(row['split'] == split for row in self._rows.values())} {split}" for split in SPLITS]
        return f"<Cohort {self.results}: {len(self)} patients ({', '.join(counts)})>"

    @cached_property
    def table(self):
        """`dataset.tsv` joined with `cohort.tsv`: a pandas.DataFrame with a row per patient of this cohort.

        patient, split and label are text; other columns are numbers where all their cells are.
        """
        import pandas as pd

        text = dict.fromkeys(("patient", "split", "label"), str)
        read = {"sep": "\t", "dtype": text, "keep_default_na": False, "na_values": [""], "encoding": "utf-8-sig"}
        table = pd.read_csv(self.results / "dataset.tsv", **read)
        verdicts = self.results / "cohort.tsv"
        if verdicts.exists():
            table = table.merge(pd.read_csv(verdicts, **read), on="patient", how="left", suffixes=("", "_cohort"))
        return table[table["patient"].isin(list(self._rows))].reset_index(drop=True)

    def select(self, **wanted):
        """The patients whose columns of `dataset.tsv` have these values, as a Cohort: `select(split="train")`.

        A list of values takes those that have any of them. Raises LungmillError on an unknown column or split.
        """
        rows = self._rows
        for column, values in wanted.items():
            known = list(next(iter(self._rows.values()), {"patient": "", "split": "", "label": ""}))
            if column not in known:
                raise LungmillError(f"dataset.tsv has no column {column!r}{_suggestion(column, known)}")
            values = {str(v) for v in ([values] if isinstance(values, (str, int, float)) else values)}
            if column == "split" and not values <= set(SPLITS):
                unknown = ", ".join(sorted(values - set(SPLITS)))
                raise LungmillError(f"split: {unknown} is not one of {', '.join(SPLITS)}")
            rows = {patient: row for patient, row in rows.items() if row[column] in values}
        return Cohort(self.results, rows)

    def _why_missing(self, patient):
        verdict = self.results / "index" / f"{patient}.json"
        if isinstance(patient, str) and "/" not in patient and verdict.is_file():
            found = read_json(verdict)
            if found.get("status") == "rejected":
                return f"patient {patient!r} was rejected ({found.get('reason')}): see {verdict}"
        return f"no patient {patient!r} among the {len(self)} of this cohort{_suggestion(str(patient), self._rows)}"


class Patient:
    """One patient: nothing is read before it is asked for."""

    def __init__(self, results, row):
        self._results = results
        self.name = row["patient"]
        self.split = row["split"]
        self.label = row["label"] or None
        # Absolute path of each product, by its column in dataset.tsv.
        self.paths = {
            column: results / cell
            for column, cell in row.items()
            if cell and column not in ("patient", "split", "label")
        }

    def __repr__(self):
        return f"<Patient {self.name}: {self.split}, {', '.join(self.paths)}>"

    @property
    def _home(self):
        """The results folder that the patient was made in: of a joined cohort, that of its part."""
        volume = self.paths.get("volume")
        return volume.parent.parent if volume else self._results

    @cached_property
    def image(self):
        """HU, int16 [z, y, x]: out of the zarr store where there is one, else the memory-mapped volume.

        Of a store, what an index asks for is read and nothing else: `image[100:164, 100:164, 100:164]`.
        """
        return self._array("image", "volume")

    @cached_property
    def mask(self):
        """0 outside, 1 right lung, 2 left lung, uint8 [z, y, x]: of the same kind as `image`."""
        return self._array("mask", "mask")

    @cached_property
    def positions(self):
        """Voxels [z, y, x] to centre patches on: {"lung", "pleura", "background"}, int32 (n, 3) each."""
        path = self.paths.get("positions")
        if path is None or not path.exists():
            raise LungmillError(f"{self.name}: no table of sampling positions at {path}: run snakemake again")
        return read_positions(path)

    @cached_property
    def grid(self):
        """The Grid of image and mask: spacing and origin in mm."""
        sidecar = self._home / "volumes" / f"{self.name}.json"
        if sidecar.exists() or self.store is None:
            return Grid.from_dict(self._json(sidecar))
        return Grid.from_dict({"shape": self.image.shape, **self.zarr.attrs})

    @cached_property
    def verdict(self):
        """What `index` found in the patient's files: the dict of `index/{patient}.json`."""
        return self._json(self._home / "index" / f"{self.name}.json")

    @cached_property
    def zarr(self):
        """The zarr store as zarr itself opens it, a `zarr.Group` with `image`, `mask` and attributes."""
        store = self.store
        if store is None:
            raise LungmillError(f"{self.name}: no zarr store: add zarr to pack.formats and run snakemake again")
        return open_zarr(store)

    @property
    def store(self):
        """The path of the zarr store, a folder or a zip; None where there is none."""
        paths = [self.paths[column] for column in ("zarr", "zarr_zip") if column in self.paths]
        return next((path for path in paths if path.exists()), None)

    def _array(self, name, product):
        store = self.store
        if store is not None:
            shard = open_array(store, name)
            return self.zarr[name] if shard is None else shard
        path = self.paths.get(product)
        if path is None or not path.exists():
            raise LungmillError(f"{self.name}: no zarr store and no {path or product} to open: run snakemake again")
        return np.load(path, mmap_mode="r")

    def _json(self, path):
        if not path.exists():
            raise LungmillError(f"{self.name}: {path} does not exist: run snakemake again")
        return read_json(path)


def _suggestion(name, known):
    close = get_close_matches(name, list(known), n=1)
    return f": did you mean {close[0]!r}?" if close else ""
