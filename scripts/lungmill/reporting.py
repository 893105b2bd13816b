"""The report on a cohort: one HTML page that opens from disk, without a network and without a server.

The page holds everything it shows. Pictures are WebP in `data:` addresses, 40 to 60 KB for a patient. So that 1,600
patients stay usable: the table comes first; cards of more than `OPEN_CARDS` patients are closed, and a browser neither
lays out nor decodes what is closed or far away (`content-visibility`); pictures of more than `MANY` patients are
smaller; the page is written card by card and never held in memory as a whole.

The same inputs give the same bytes. Times and memory differ from run to run, so they all stand in the one line that
starts with `<script type="application/json" id="timings">`; the page's script fills them in. All else reads without it.

Every text that comes from a file is escaped; JSON cannot end its script element, for `<` is written as `\\u003c`.
"""

import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

from lungmill.dataset import SPLITS
from lungmill.files import read_tsv, replacing
from lungmill.report_cards import card, is_file_name, patient_file
from lungmill.report_words import (
    DASH,
    STORES,
    badge,
    bar,
    display_name,
    is_accepted,
    label,
    lung_volumes,
    megabytes,
    notes,
    number,
    total_mb,
)
from lungmill.version import __version__

OPEN_CARDS = 30  # with more patients than this every card starts closed
MANY = 300  # with more patients than this the pictures are smaller, so that 1,600 accepted ones are about 70 MB
FINE, SMALL = (900, 80), (640, 70)  # width in pixels and WebP quality
# What a job says at its end, in its log (scripts/_job.py).
USED = re.compile(r"used ([\d.]+) s of CPU, ([\d.]+) MB at most$", re.MULTILINE)
STAGES = {
    "demo": "Make the demo scans",
    "index": "Read and judge",
    "resample": "Resample",
    "segment": "Segment lungs",
    **{f"pack_{key}": f"Pack as {name}" for key, name in STORES.items()},
    "patches": "Cut patches",
}


def write_report(path, results, *, cohort, logs, title="Chest CT cohort", threads=1):
    """Write the report on a cohort as one HTML page.

    What is not there is left out: columns of the table, files of a patient, benchmarks of a rule.

    :param path: the page to write, usually results/report/index.html
    :param results: the folder with index/, volumes/, masks/ and dataset.tsv
    :param cohort: results/cohort.tsv; `patient` is the id used in file names, `name` (optional) what is displayed
    :param logs: the folder with {rule}/{patient}.tsv, Snakemake's benchmarks
    :param threads: patients whose pictures are made at the same time; the page does not depend on it
    :raises LungmillError: a JSON file in `results` is damaged
    """
    results = Path(results)
    rows = [row for row in read_tsv(cohort) if row.get("patient")]
    dataset = results / "dataset.tsv"
    splits = {row["patient"]: row for row in read_tsv(dataset)} if dataset.is_file() else {}
    for place, row in enumerate(rows):
        row |= {key: splits.get(row["patient"], {}).get(key, "") for key in ("split", "label")}
        row["anchor"] = f"patient-{row['patient']}" if is_file_name(row["patient"]) else f"row-{place}"
    picture = FINE if len(rows) <= MANY else SMALL
    is_open = len(rows) <= OPEN_CARDS
    with ThreadPoolExecutor(threads) as pool, replacing(path) as temporary:
        blocks = {
            "title": escape(title),
            "summary": escape(_summary(rows)),
            "figures": _figures(rows),
            "causes": _causes(rows),
            "table": "".join(map(_table_row, rows)),
            "cards": _in_batches(pool, lambda row: card(row, results, picture, is_open), rows),
            "timings": _json(_timings(Path(logs), rows)),
            "version": escape(__version__),
        }
        template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
        with temporary.open("w", encoding="utf-8", newline="\n") as page:
            for place, part in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
                block = blocks[part] if place % 2 else part
                page.writelines([block] if isinstance(block, str) else block)


def _in_batches(pool, function, items, size=32):
    """Map in order, with few results waiting: Executor.map alone would hold every card."""
    for start in range(0, len(items), size):
        yield from pool.map(function, items[start : start + size])


def _summary(rows):
    accepted = list(filter(is_accepted, rows))
    noted = sum(bool(notes(row)) for row in accepted)
    text = f"{len(rows):,} {'patient' if len(rows) == 1 else 'patients'}: {len(accepted):,} accepted"
    text += f" ({noted:,} of them with something to look at)" if noted else ""
    text += f", {len(rows) - len(accepted):,} rejected."
    before, arrays = total_mb(accepted, "dicom"), total_mb(accepted, "volume", "mask")
    if before and arrays:
        packed = [f"{megabytes(size)} as {name}" for key, name in STORES.items() if (size := total_mb(accepted, key))]
        text += f" {megabytes(before)} of DICOM became {', '.join([megabytes(arrays) + ' of arrays', *packed])}."
    return text


def _figures(rows):
    accepted = list(filter(is_accepted, rows))
    figures = [(f"{len(accepted):,}", "accepted"), (f"{len(rows) - len(accepted):,}", "rejected")]
    figures.append((f"{sum(len(notes(row)) for row in accepted):,}", "warnings and flags"))
    sizes = [("DICOM, accepted", ("dicom",)), ("volumes and masks", ("volume", "mask"))]
    sizes += [(name, (key,)) for key, name in STORES.items()] + [("patches", ("patches",))]
    figures += [(megabytes(size), words) for words, keys in sizes if (size := total_mb(accepted, *keys))]
    for split in SPLITS:
        if n := sum(row["split"] == split for row in accepted):
            figures.append((f"{n:,}", f"in {split}"))
    return "".join(f"<div><dt>{escape(words)}</dt><dd>{escape(value)}</dd></div>" for value, words in figures)


def _causes(rows):
    blocks = []
    rejected = Counter(row.get("reason", "") for row in rows if not is_accepted(row))
    noted = Counter(code for row in rows if is_accepted(row) for code in notes(row))
    for words, counts in (("Why patients were rejected", rejected), ("Accepted, but worth a look", noted)):
        if not counts:
            continue
        lines = "".join(
            f'<tr><th scope="row">{escape(label(code) or "Not said")}</th><td class="number">{n:,}</td>'
            f"{bar(n, len(rows))}</tr>"
            for code, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        )
        blocks.append(f'<section><h2>{words}</h2><table class="bars">{lines}</table></section>')
    return "".join(blocks)


def _table_row(row):
    if is_accepted(row):
        about = ", ".join(map(label, notes(row)))
    else:
        about = f" {DASH} ".join(filter(None, (label(row.get("reason", "")), row.get("detail"))))
    spacing = [number(part) for part in row.get("source_spacing_mm", "").split(",")]
    volumes = lung_volumes(row)
    cells = (
        _number_cell(number(row.get("n_slices")), "{:,.0f}"),
        _number_cell(spacing[0], "{:.2f}"),
        _number_cell(spacing[-1] if len(spacing) == 3 else None, "{:.2f}"),
        _number_cell(sum(volumes) if volumes else None, "{:,.0f}"),
        _number_cell(number(row.get("dicom_mb")), "{:,.1f}"),
        _number_cell(total_mb([row], *STORES) or None, "{:,.1f}"),
    )
    return (
        f'<tr><th scope="row"><a href="#{row["anchor"]}">{escape(display_name(row))}</a></th><td>{badge(row)}</td>'
        f'<td class="about">{escape(about)}</td>{"".join(cells)}<td>{escape(row["split"])}</td></tr>\n'
    )


def _number_cell(value, form):
    """A cell that the page's script sorts by `data-v`, the number unrounded."""
    if value is None:
        return '<td class="number" data-v=""></td>'
    return f'<td class="number" data-v="{value!r}">{form.format(value)}</td>'


def _timings(logs, rows):
    """Benchmarks as {"stages": [words, ...], "patients": {id: [[stage, s, CPU s, MB], ...]}}; None where not measured.

    The report's own rule is left out: its benchmark is one of an earlier run.
    """
    rules = [folder.name for folder in logs.iterdir() if folder.is_dir()] if logs.is_dir() else []
    order = {rule: place for place, rule in enumerate(STAGES)}
    rules = sorted((rule for rule in rules if rule != "report"), key=lambda rule: (order.get(rule, len(order)), rule))
    patients = {}
    for row in rows:
        measured = []
        for stage, rule in enumerate(rules):
            file = patient_file(logs / rule, row["patient"], ".tsv")
            if file and (values := _benchmark(file)):
                measured.append([stage, *values])
        if measured:
            patients[row["patient"]] = measured
    return {"stages": [STAGES.get(rule) or label(rule) for rule in rules], "patients": patients}


def _benchmark(file):
    """Seconds, CPU seconds and MB of the last run in a Snakemake benchmark; None where it holds no number.

    CPU and memory are taken from the job's own log where it says them: Snakemake samples, and misses short jobs.
    """
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    if len(lines) < 2:
        return None
    cells = dict(zip(lines[0], lines[-1], strict=False))
    values = [number(cells.get(key)) for key in ("s", "cpu_time", "max_rss")]
    log = file.with_suffix(".log")
    used = USED.findall(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else []
    if used:
        values[1:] = map(float, used[-1])
    return values if any(value is not None for value in values) else None


def _json(value):
    """JSON on one line that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
