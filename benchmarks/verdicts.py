"""Print what lungmill says of every patient folder: status, reason or warnings in words, and the series it chose.

    python benchmarks/verdicts.py FOLDER [--min-slices 10] [--max-gap 2.5] [--orientations axial,coronal] [--candidates]

FOLDER holds one sub-folder per patient. A sub-folder that holds nothing but folders and notes stands for those.
Each folder is judged as the workflow does it; the time and the peak of memory so far are printed too, since every
folder must end with a verdict within seconds.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from lungmill.indexing import DEFAULT_SETTINGS, index
from lungmill.verdict import REASONS, WARNINGS


def patient_folders(folder):
    """The sub-folders, those of folders and notes alone replaced by what they hold; the folder itself if none."""
    found = []
    for place in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        inside = list(place.iterdir())
        is_group = any(path.is_dir() for path in inside) and all(path.is_dir() or is_note(path) for path in inside)
        found += patient_folders(place) if is_group else [place]
    return found or [Path(folder)]


def is_note(path):
    return path.suffix.lower() in {".md", ".txt", ".pdf"}


def lines_of(verdict, candidates):
    """The verdict in words, one thing a line."""
    if verdict["status"] == "rejected":
        yield f"reason   {verdict['reason']}: {REASONS[verdict['reason']]}"
        yield f"         {verdict['detail']}"
    for warning in verdict["warnings"]:
        yield f"warning  {warning['code']}: {WARNINGS.get(warning['code'], REASONS.get(warning['code'], ''))}"
        yield f"         {warning['detail']}"
    if verdict["status"] == "accepted":
        geometry, series = verdict["geometry"], verdict["series"]
        matrix = " x ".join(str(number) for number in geometry["shape"])
        pixels = " x ".join(f"{mm:.3f}" for mm in geometry["pixel_spacing"])
        yield (
            f"series   {series['uid']}: {matrix}, {geometry['orientation']}, step {geometry['step_mm']:.3f} mm, "
            f"pixels {pixels} mm, tilt {geometry['tilt_degrees']:.1f} degrees, {series['transfer_syntax']}"
        )
    files = verdict["files"]
    yield f"files    {files['dicom']} DICOM, {files['not_dicom']} not, {files['unreadable']} unreadable"
    if candidates:
        for candidate in verdict["candidates"]:
            said = "chosen" if candidate["chosen"] else candidate["reason"] or "acceptable, not the best"
            detail = f" ({candidate['detail']})" if candidate["detail"] else ""
            yield f"  {candidate['series']}  {candidate['n_slices']:4d} slices  {said}{detail}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--min-slices", type=int, default=DEFAULT_SETTINGS["min_slices"])
    parser.add_argument("--max-gap", type=float, default=DEFAULT_SETTINGS["max_gap"])
    parser.add_argument("--orientations", default=",".join(DEFAULT_SETTINGS["orientations"]))
    parser.add_argument("--candidates", action="store_true", help="list every candidate series with its reason")
    options = parser.parse_args()
    settings = {
        "min_slices": options.min_slices,
        "max_gap": options.max_gap,
        "orientations": options.orientations.split(","),
    }
    for folder in patient_folders(options.folder):
        start = time.perf_counter()
        verdict = index(folder, settings=settings)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        name = folder.relative_to(options.folder) if folder != options.folder else folder.name
        print(f"{name}: {verdict['status']}  ({seconds:.2f} s, peak {peak:.0f} MB)")
        for line in lines_of(verdict, options.candidates):
            print(f"  {line}")


if __name__ == "__main__":
    main()
