"""What a job asks for: memory and time from the size of its scan, more with every attempt; threads stay at 1.

The numbers are fits to the peaks that jobs wrote into their logs ("used X s of CPU, Y MB at most"), of the scans in
tests/conftest.py's demo cohort and of four real ones at 1, 0.7 and 0.5 mm (the largest 342 million voxels, 1.6 GB).
V is the number of voxels of the output in millions; 2 V MB are its int16 volume, 3 V volume and mask. Files that are
memory-mapped count as memory of the job, though the kernel could take them back.

| rule     | MB, fitted              | measured at V = 43 / 125 / 342    | asked for               |
|----------|-------------------------|-----------------------------------|-------------------------|
| index    | 215                     | 206 / 206 / 206                   | 300                     |
| resample | 210 + 2 V + input       | 291 / 457 / 895                   | 260 + 2.1 V + input     |
|   cubic  |   + 4 slices x plane    | 380 /     / 1161                  |   + 4.2 slices x plane  |
| segment  | 250 + 4.1 V (350 where  | 423 / 760 / 1638                  | 370 + 4.3 V             |
|          | numba compiles first)   |                                   |                         |
| pack     | 130 + 3 V (bcolz)       | 247 / 500 / 1156, zarr 1074       | 200 + 3.1 V             |
| patches  | 2 V at most             | 152 / 289 / 683                   | 200 + 2.1 V + patches   |
| report   | 100 + 2 V of the largest| 168 / 384 / 759                   | 300 + 2.1 V + patients  |
"""

import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from snakemake.common.tbdstring import TBDString

from batch_pairs import legal_memory

# Inside a job of a cluster run, beside the step, two Snakemake processes of 120 MB each and the interpreter that steps
# are forked from, of up to 250 MB.
SNAKEMAKE_MB = 500
# A second attempt asks for twice as much: the fits above hold within a few per cent, so what exceeds them does not do
# so by a little.
GROWTH = 2
# A step takes seconds. What it asks for is twenty times what was measured, and a minute for a file system that hangs.
SLOWEST, PATIENCE = 20, 60


@dataclass(frozen=True)
class Scan:
    """Sizes of one patient's scan: `pixels` read and `voxels` written, in millions; slices, and pixels of a plane."""

    pixels: float
    voxels: float
    planes: float  # voxels of the scan's slices after resampling within their planes, in millions


class Needs:
    """The resources of every rule; `of(rule)` is what stands after `resources:`.

    in_a_cluster_job: a function that says whether jobs are sent away, so that Snakemake itself is part of them.
    fetch: gives the path of a result, or of a copy of one that is in S3. on_aws: memory must be one that AWS Batch has.
    """

    def __init__(self, results, config, patients, in_a_cluster_job, fetch=str, on_aws=False):
        self.results, self.fetch = Path(results), fetch
        spacing = config["resample"]["spacing"]
        self.spacing = tuple(spacing) if isinstance(spacing, (list, tuple)) else (spacing,) * 3
        self.cubic = config["resample"]["interpolation"] == "cubic"
        self.command = config["segment"]["method"] == "command"
        patch = config["patches"]
        self.patches_mb = 3 * 2 * patch["per_class"] * math.prod(patch["shape"]) / 1e6
        self.patients = patients
        self.in_a_cluster_job, self.on_aws = in_a_cluster_job, on_aws
        self._verdicts = {}

    def of(self, rule):
        """{"mem_mb": ..., "runtime": ...}: functions of (wildcards, attempt), as Snakemake calls them."""
        first = getattr(self, f"_{rule}")

        def mem_mb(wildcards, attempt):
            asked = first(wildcards)
            if asked is None:
                return TBDString()  # the verdict is not there yet: Snakemake asks again when the job can run
            beside = SNAKEMAKE_MB if self.in_a_cluster_job() else 0
            if self.on_aws:  # what it has grows with the attempt, not what was too little of it
                return legal_memory(legal_memory(asked[0] + beside) * GROWTH ** (attempt - 1))
            return math.ceil(asked[0]) * GROWTH ** (attempt - 1) + beside

        def runtime(wildcards, attempt):
            asked = first(wildcards)
            if asked is None:
                return TBDString()
            return math.ceil((PATIENCE + SLOWEST * asked[1]) / 60) * GROWTH ** (attempt - 1)

        return {"mem_mb": mem_mb, "runtime": runtime}

    # Each returns (MB, CPU seconds measured) of a first attempt, or None where the scan is not known yet.

    def _demo(self, wildcards):
        return 300, 7

    def _index(self, wildcards):
        return 300, 1

    def _resample(self, wildcards):
        if (scan := self._scan(wildcards)) is None:
            return None
        mb = 260 + 2.1 * scan.voxels + 4 * scan.pixels
        return (mb + 4.2 * scan.planes if self.cubic else mb), 1 + 0.015 * scan.voxels

    def _segment(self, wildcards):
        if (scan := self._scan(wildcards)) is None:
            return None
        if self.command:
            # The volume as NIfTI and back; what the user's program takes is not known: 4 GB and 5 minutes for a
            # network of usual size on one core. `--set-resources segment:mem_mb=...` says it better.
            return 4000 + 12 * scan.voxels, 15
        return 370 + 4.3 * scan.voxels, 2 + 0.02 * scan.voxels

    def _pack(self, wildcards):
        if (scan := self._scan(wildcards)) is None:
            return None
        return 200 + 3.1 * scan.voxels, 1 + 0.03 * scan.voxels

    def _patches(self, wildcards):
        if (scan := self._scan(wildcards)) is None:
            return None
        return 200 + 2.1 * scan.voxels + self.patches_mb, 1

    def _table(self, wildcards):
        """Tables of the cohort. A patient's row and what it is made from take 20 kB and a millisecond."""
        return 200 + 0.02 * len(self.patients), 1 + 0.002 * len(self.patients)

    def _report(self, wildcards):
        scans = [scan for patient in self.patients if (scan := scan_of(self._verdict(patient), self.spacing))]
        largest = max((scan.voxels for scan in scans), default=0)
        return 300 + 2.1 * largest + 0.3 * len(scans), 1 + 0.2 * len(scans)

    def _scan(self, wildcards):
        return scan_of(self._verdict(wildcards.patient), self.spacing)

    def _verdict(self, patient):
        if patient not in self._verdicts:
            try:
                self._verdicts[patient] = self.fetch(str(self.results / "index" / f"{patient}.json"))
            except FileNotFoundError as error:  # not in S3 yet; `scan_of` finds nothing there either
                return error.filename
        return self._verdicts[patient]


@cache
def _read(verdict, changed):
    """The parts of a verdict that sizes follow from: (geometry, first and last position), or None where it has none.

    A verdict lists every slice, so only what stands before that list is parsed.
    """
    text = Path(verdict).read_text(encoding="utf-8")
    head, found, slices = text.partition(',\n  "slices": [')
    try:
        geometry = json.loads(head + "}" if found else head).get("geometry")
        return geometry and (geometry, *(_position(slices, find) for find in (str.find, str.rfind)))
    except (ValueError, AttributeError):
        return None  # damaged: the job that reads it says so


def _position(slices, find):
    start = find(slices, '"position": [')
    return json.loads(slices[slices.index("[", start) : slices.index("]", start) + 1])


def scan_of(verdict, spacing):
    """Sizes of the scan that a verdict chose, or None where there is no verdict or no scan."""
    try:
        read = _read(verdict, Path(verdict).stat().st_mtime_ns)
    except FileNotFoundError:
        return None
    if read is None:
        return Scan(0, 0, 0)
    geometry, first, last = read
    slices, rows, columns = geometry["shape"]
    along_row, along_column = geometry["directions"][:3], geometry["directions"][3:]
    down, right = ((n - 1) * mm for n, mm in zip((rows, columns), geometry["pixel_spacing"], strict=True))
    voxels = 1
    for axis in range(3):  # x, y, z of the corners of the first and the last slice, as in lungmill.resampling
        plane = [0, along_row[axis] * right, along_column[axis] * down]
        plane.append(plane[1] + plane[2])
        low, high = (edge([edge(plane) + first[axis], edge(plane) + last[axis]]) for edge in (min, max))
        voxels *= math.floor((high - low) / spacing[2 - axis] + 1e-4) + 1
    planes = slices * (down / min(spacing[1:]) + 1) * (right / min(spacing[1:]) + 1)
    return Scan(slices * rows * columns / 1e6, voxels / 1e6, planes / 1e6)
