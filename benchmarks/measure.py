"""Everything that the README says about speed, size and memory, measured in one run and drawn as a picture.

    python benchmarks/measure.py [DICOM_FOLDER] [--rounds 3] [--thin MM] [--picture measured.svg]

Runs compare.py (the steps against scipy, SimpleITK, MONAI, TorchIO and the 2017 recipe, as far as they are installed),
stores.py (size and speed of stores) and workflow.py (a cohort of eight, against the recipe), prints their tables, and
draws how many times less lungmill took: medians of the ratios within a round, with their range. Without a folder it
takes a patient of the demo cohort. Half an hour on a large scan.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

HERE = Path(__file__).parent
WIDTH, LABELS, TICKS = 860, 430, (1, 2, 5, 10, 20, 50, 100)
STYLE = "font:13px system-ui,sans-serif;fill:#222"


def run(program, *arguments):
    """Run a program of this folder; what it printed goes on, what it wrote as JSON comes back."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        subprocess.run([sys.executable, str(HERE / program), *arguments, "--json", str(found)], check=True)
        return json.loads(found.read_text(encoding="utf-8"))


def rows_of(steps, stores, rounds):
    """(label, ratios) of everything that was compared: above 1, lungmill took less."""
    yield (
        "whole workflow, CPU: 2017 recipe",
        [r["recipe"]["cpu_seconds"] / r["workflow"]["cpu"] for r in rounds],
    )
    yield (
        "whole workflow, peak memory: 2017 recipe",
        [r["recipe"]["peak_mb"] / r["workflow"]["peak_mb"] for r in rounds],
    )
    for line, seconds in steps.items():
        yield line, [b / a for a, b in zip(seconds["lungmill"], seconds["other"], strict=True)]
    ours = stores["lungmill"]
    for name, other in stores.items():
        if not name.startswith("lungmill"):
            yield f"store, bytes: {name}", [other["bytes"] / ours["bytes"]]
            yield f"store, write: {name}", [b / a for a, b in zip(ours["write"], other["write"], strict=True)]


def picture(rows):
    """An SVG with a bar for each row, on a logarithmic axis."""
    height = 26 * len(rows) + 50
    scale = (WIDTH - LABELS - 60) / math.log(TICKS[-1])

    def x(value):
        return LABELS + scale * math.log(min(max(value, 0.5), TICKS[-1]))

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" style="{STYLE}">']
    parts.append(f'<rect width="{WIDTH}" height="{height}" fill="white"/>')
    for tick in TICKS:
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="8" y2="{height - 36}" stroke="#ddd"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{height - 20}" text-anchor="middle">{tick}</text>')
    parts.append(f'<text x="{x(10):.1f}" y="{height - 4}" text-anchor="middle">times less by lungmill</text>')
    for number, (label, ratios) in enumerate(rows):
        y = 26 * number + 12
        low, middle, high = min(ratios), median(ratios), max(ratios)
        parts.append(f'<text x="{LABELS - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        left, right = sorted((x(1), x(middle)))
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="17" fill="#4a7ebb"/>')
        parts.append(f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{y + 8.5}" y2="{y + 8.5}" stroke="#222"/>')
        parts.append(f'<text x="{max(right, x(high)) + 6:.1f}" y="{y + 13}">{middle:.1f}</text>')
    return "\n".join([*parts, "</svg>\n"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="a patient's DICOM folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--thin", type=float, metavar="MM")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rounds = ["--rounds", str(options.rounds)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = [options.folder] if options.folder else []
        if options.folder and options.thin:
            from workflow import make_thin

            make_thin(options.folder, Path(scratch) / "thin", options.thin)
            folder = [str(Path(scratch) / "thin")]
        steps = run("compare.py", *folder, *rounds)
        stores = run("stores.py", *folder, *rounds)
        found = run("workflow.py", *folder, *rounds)
    if options.picture:
        options.picture.write_text(picture(list(rows_of(steps, stores, found))), encoding="utf-8")


if __name__ == "__main__":
    main()
