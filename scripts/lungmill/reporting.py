"""The report on a cohort: one HTML page that opens from disk, without a network and without a server.

The page holds everything it shows. Pictures are WebP in `data:` addresses, 40 to 60 KB for a patient. So that 1,600
patients stay usable: the table comes first; cards of more than `OPEN_CARDS` patients are closed, and a browser neither
lays out nor decodes what is closed or far away (`content-visibility`); pictures of more than `MANY` patients are
smaller; the page is written card by card and never held in memory as a whole.

The same inputs give the same bytes. Times and memory differ from run to run, so they all stand in the one line that
starts with `<script type="application/json" id="timings">`; the page's script fills them in. All else reads without it.

Every text that comes from a file is escaped; JSON cannot end its script element, for `<` is written as `\\u003c`.
"""

import base64
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from html import escape
from pathlib import Path

import numpy as np

from lungmill import pictures
from lungmill.errors import LungmillError
from lungmill.files import read_json, read_tsv, replacing
from lungmill.version import __version__

OPEN_CARDS = 30  # with more patients than this every card starts closed
MANY = 300  # with more patients than this the pictures are smaller, so that 1,600 accepted ones are about 70 MB
FINE, SMALL = (900, 80), (640, 70)  # width in pixels and WebP quality
BY, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
STORES = {"zarr": "Zarr", "bcolz": "bcolz", "hdf5": "HDF5", "npz": "npz"}
SIZES = {"dicom": "DICOM", "volume": "Volume, .npy", "mask": "Mask, .npy", **STORES, "patches": "Patches"}
STAGES = {
    "demo": "Make the demo scans",
    "index": "Read and judge",
    "resample": "Resample",
    "segment": "Segment lungs",
    **{f"pack_{key}": f"Pack as {name}" for key, name in STORES.items()},
    "patches": "Cut patches",
}
WORDS = {
    "no_dicom": "No DICOM files",
    "no_ct_series": "No CT series",
    "too_few_slices": "Too few slices",
    "missing_slices": "Slices are missing",
    "truncated_pixels": "Pixel data is cut short",
    "unreadable": "Files cannot be read",
    "unsupported_transfer_syntax": "Compression not supported",
    "inconsistent_geometry": "Slices do not fit together",
    "no_geometry": "No slice positions",
    "not_axial": "Not an axial scan",
    "implausible_hu": "Implausible Hounsfield units",
    "gantry_tilt": "Tilted gantry",
    "irregular_spacing": "Unequal slice distances",
    "duplicate_slices": "Duplicate slices",
    "several_series": "Several series",
    "lossy_compression": "Lossy compression",
    "ignored_files": "Files left out",
    "padding": "Padding replaced by air",
    "no_lungs": "No lungs found",
    "lung_volume": "Unusual lung volume",
    "asymmetry": "Unequal lungs",
    "touches_border": "Lungs reach the border",
    "no_trachea": "No trachea found",
}
SYNTAXES = {
    "1.2.840.10008.1.2": "uncompressed (implicit VR)",
    "1.2.840.10008.1.2.1": "uncompressed",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "uncompressed (big endian)",
    "1.2.840.10008.1.2.4.50": "JPEG, lossy",
    "1.2.840.10008.1.2.4.51": "JPEG, lossy, 12 bit",
    "1.2.840.10008.1.2.4.57": "JPEG, lossless",
    "1.2.840.10008.1.2.4.70": "JPEG, lossless",
    "1.2.840.10008.1.2.4.80": "JPEG-LS, lossless",
    "1.2.840.10008.1.2.4.81": "JPEG-LS, near-lossless",
    "1.2.840.10008.1.2.4.90": "JPEG 2000, lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000, lossy",
    "1.2.840.10008.1.2.4.201": "High-Throughput JPEG 2000, lossless",
    "1.2.840.10008.1.2.5": "RLE, lossless",
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
    for number, row in enumerate(rows):
        row |= {key: splits.get(row["patient"], {}).get(key, "") for key in ("split", "label")}
        row["anchor"] = f"patient-{row['patient']}" if _is_file_name(row["patient"]) else f"row-{number}"
    picture = FINE if len(rows) <= MANY else SMALL
    is_open = len(rows) <= OPEN_CARDS
    with ThreadPoolExecutor(threads) as pool, replacing(path) as temporary:
        blocks = {
            "title": escape(title),
            "summary": escape(_summary(rows)),
            "figures": _figures(rows),
            "causes": _causes(rows),
            "table": _table(rows),
            "cards": _in_batches(pool, lambda row: _card(row, results, picture, is_open), rows),
            "timings": _json(_timings(Path(logs), rows)),
            "version": escape(__version__),
        }
        template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
        with temporary.open("w", encoding="utf-8", newline="\n") as page:
            for number, part in enumerate(re.split(r"\{\{(\w+)\}\}", template)):
                block = blocks[part] if number % 2 else part
                page.writelines([block] if isinstance(block, str) else block)


def _in_batches(pool, function, items, size=32):
    """Map in order, with few results waiting: Executor.map alone would hold every card."""
    for start in range(0, len(items), size):
        yield from pool.map(function, items[start : start + size])


# ---- words and numbers


def _is_file_name(patient):
    return re.fullmatch(r"[\w-][\w.-]*", patient, re.ASCII) is not None


def _words(code):
    return WORDS.get(code) or str(code).replace("_", " ").strip().capitalize()


def _codes(row, key):
    return [code.strip() for code in row.get(key, "").split(",") if code.strip()]


def _number(text):
    """The number in a cell, None where there is none: '', '-', 'NA', 'nan' or words."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def _megabytes(value):
    if value >= 999.5:
        return f"{value / 1000:.3g} GB" if value < 999500 else f"{value / 1e6:,.3g} TB"
    return f"{value:.0f} MB" if value >= 10 else f"{value:.1f} MB" if value >= 0.95 else f"{value * 1000:.0f} kB"


def _times(cell, places=None):
    """A cell such as '133,512,512' with multiplication signs; fractions are rounded to `places`."""
    numbers = [_number(part) for part in (cell or "").split(",")]
    if None in numbers:
        return cell or ""
    return f" {BY} ".join(f"{n:g}" if places is None else f"{n:.{places}f}".rstrip("0").rstrip(".") for n in numbers)


def _count(number, one, many=None):
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _total(rows, *keys):
    return sum(_number(row.get(f"{key}_mb")) or 0 for row in rows for key in keys)


def _accepted(rows):
    return [row for row in rows if row.get("status") == "accepted"]


def _notes(row):
    return (
        _codes(row, "warnings")
        + [c for c in _codes(row, "mask_flags") if c != row.get("mask_status")]
        + (["no_lungs"] if row.get("mask_status") == "no_lungs" else [])
    )


def _json(value):
    """JSON on one line that is safe inside a script element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# ---- head and table


def _summary(rows):
    accepted = _accepted(rows)
    noted = sum(bool(_notes(row)) for row in accepted)
    text = f"{_count(len(rows), 'patient')}: {len(accepted):,} accepted"
    text += f" ({noted:,} of them with something to look at)" if noted else ""
    text += f", {len(rows) - len(accepted):,} rejected."
    before, arrays = _total(accepted, "dicom"), _total(accepted, "volume", "mask")
    if before and arrays:
        packed = [f"{_megabytes(size)} as {name}" for key, name in STORES.items() if (size := _total(accepted, key))]
        text += f" {_megabytes(before)} of DICOM became {', '.join([_megabytes(arrays) + ' of arrays', *packed])}."
    return text


def _figures(rows):
    accepted = _accepted(rows)
    figures = [(f"{len(accepted):,}", "accepted"), (f"{len(rows) - len(accepted):,}", "rejected")]
    figures.append((f"{sum(len(_notes(row)) for row in accepted):,}", "warnings and flags"))
    sizes = [("DICOM, accepted", ("dicom",)), ("volumes and masks", ("volume", "mask"))]
    sizes += [(name, (key,)) for key, name in STORES.items()] + [("patches", ("patches",))]
    figures += [(_megabytes(size), words) for words, keys in sizes if (size := _total(accepted, *keys))]
    for split in ("train", "val", "test"):
        if n := sum(row["split"] == split for row in accepted):
            figures.append((f"{n:,}", f"in {split}"))
    return "".join(f"<div><dt>{escape(words)}</dt><dd>{escape(value)}</dd></div>" for value, words in figures)


def _causes(rows):
    blocks = []
    rejected = Counter(row.get("reason", "") for row in rows if row.get("status") != "accepted")
    noted = Counter(code for row in _accepted(rows) for code in _notes(row))
    for words, counts in (("Why patients were rejected", rejected), ("Accepted, but worth a look", noted)):
        if not counts:
            continue
        lines = "".join(
            f'<tr><th scope="row">{escape(_words(code) or "Not said")}</th><td class="number">{n:,}</td>'
            f'<td class="bar"><i style="width:{100 * n / len(rows):.1f}%"></i></td></tr>'
            for code, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        )
        blocks.append(f'<section><h2>{words}</h2><table class="bars">{lines}</table></section>')
    return "".join(blocks)


def _table(rows):
    return "".join(map(_table_row, rows))


def _table_row(row):
    ok = row.get("status") == "accepted"
    if ok:
        about = ", ".join(map(_words, _notes(row)))
    else:
        about = f" {DASH} ".join(filter(None, (_words(row.get("reason", "")), row.get("detail"))))
    spacing = [_number(part) for part in row.get("source_spacing_mm", "").split(",")]
    lungs = [_number(row.get(f"{side}_ml")) for side in ("right", "left")]
    packed = _total([row], *STORES)
    numbers = [
        (_number(row.get("n_slices")), "{:,.0f}"),
        (spacing[0], "{:.2f}"),
        (spacing[-1] if len(spacing) == 3 else None, "{:.2f}"),
        (None if None in lungs else sum(lungs), "{:,.0f}"),
        (_number(row.get("dicom_mb")), "{:,.1f}"),
        (packed or None, "{:,.1f}"),
    ]
    cells = "".join(
        '<td class="number" data-v=""></td>'
        if n is None
        else f'<td class="number" data-v="{n!r}">{form.format(n)}</td>'
        for n, form in numbers
    )
    return (
        f'<tr><th scope="row"><a href="#{row["anchor"]}">{escape(_name(row))}</a></th>'
        f'<td><span class="status {"ok" if ok else "no"}">{"accepted" if ok else "rejected"}</span></td>'
        f'<td class="about">{escape(about)}</td>{cells}<td>{escape(row["split"])}</td></tr>\n'
    )


def _name(row):
    return row.get("name") or row["patient"]


# ---- cards


def _card(row, results, picture, is_open):
    ok = row.get("status") == "accepted"
    verdict, volume, mask = (_sidecar(results, folder, row["patient"]) for folder in ("index", "volumes", "masks"))
    notes = _note_list(row, verdict, mask)
    if ok:
        facts = f'<div class="facts">{_facts(row)}{_histogram(volume)}{_sizes(row)}</div>'
        seen = f"<div>{_figure(row, results, volume, mask, picture)}{notes}</div>"
        body = f'<div class="columns">{seen}{facts}</div>{_TIMES}'
        short = ", ".join(map(_words, _notes(row)))
    else:
        short = _words(row.get("reason", ""))
        body = f'<p class="reason"><b>{escape(short)}.</b> {escape(row.get("detail", ""))}</p>{notes}'
    return (
        f'<details class="card" data-id="{escape(row["patient"])}"{" open" if is_open else ""}>'
        f'<summary><h3>{escape(_name(row))}</h3><span class="status {"ok" if ok else "no"}">'
        f'{"accepted" if ok else "rejected"}</span><span class="short">{escape(short)}</span></summary>'
        f'<div class="body" id="{row["anchor"]}">{body}{_verdict(verdict)}</div></details>\n'
    )


_TIMES = '<div class="times" hidden><h4>Time and memory</h4><div class="scroll"><table></table></div></div>'


def _sidecar(results, folder, patient):
    file = results / folder / f"{patient}.json"
    return read_json(file) if _is_file_name(patient) and file.is_file() else {}


def _array(results, folder, patient):
    file = results / folder / f"{patient}.npy"
    if not _is_file_name(patient) or not file.is_file():
        return None
    try:
        return np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise LungmillError(f"{file} is not a whole NumPy file ({error}): delete it and run again") from error


def _figure(row, results, volume, mask, picture):
    image, labels = (_array(results, folder, row["patient"]) for folder in ("volumes", "masks"))
    spacing = volume.get("spacing_mm") or mask.get("spacing_mm")
    if image is None or not spacing:
        return '<figure><p class="missing">No resampled volume was found for this patient.</p></figure>'
    if labels is not None and labels.shape != image.shape:
        raise LungmillError(
            f"{row['patient']}: the mask's shape {labels.shape} is not the volume's {image.shape}: "
            f"delete masks/{row['patient']}.npy and run again"
        )
    width, quality = picture
    shown = pictures.montage(image, labels, spacing, bounding_box=mask.get("bounding_box"), width=width)
    data = base64.b64encode(pictures.webp(shown, quality)).decode()
    return (
        f'<figure><div class="scroll"><img src="data:image/webp;base64,{data}" width="{width}" height="{len(shown)}" '
        f'loading="lazy" alt="Axial, coronal and sagittal slices of {escape(_name(row))}"></div>'
        '<figcaption><span class="key right">right lung</span> <span class="key left">left lung</span> '
        "Lung window, &minus;1350 to 150 HU. z, y and x are indices of the resampled array; "
        "the marks on the coronal view are the axial slices.</figcaption></figure>"
    )


def _facts(row):
    lungs = [_number(row.get(f"{side}_ml")) for side in ("right", "left")]
    known = [f"{side} {ml:,.0f}" for side, ml in zip(("right", "left"), lungs, strict=True) if ml is not None]
    total = f"{sum(ml for ml in lungs if ml is not None):,.0f} ml: " if known else ""
    syntax = row.get("transfer_syntax", "")
    facts = [
        ("Lungs", total + ", ".join(known)),
        ("Scan", _mm(row, "source_shape", "source_spacing_mm") or _slices(row)),
        ("Array", _mm(row, "shape", "spacing_mm")),
        ("Orientation", row.get("orientation", "")),
        ("Stored as", SYNTAXES.get(syntax, syntax)),
        ("Split", row["split"]),
        ("Label", row["label"]),
    ]
    return "<dl>" + "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts if value) + "</dl>"


def _mm(row, shape, spacing):
    if not row.get(shape):
        return ""
    return _times(row[shape]) + (f", {_times(row[spacing], 3)} mm" if row.get(spacing) else "")


def _slices(row):
    return f"{row['n_slices']} slices" if row.get("n_slices") else ""


def _histogram(volume):
    found = volume.get("hu_histogram")
    if not found:
        return ""
    drawing = pictures.histogram_svg(found["counts"], found["start_hu"], found["width_hu"])
    return f"<h4>Hounsfield units <small>share of all voxels</small></h4>{drawing}" if drawing else ""


def _sizes(row):
    sizes = {key: size for key in SIZES if (size := _number(row.get(f"{key}_mb"))) is not None}
    if not sizes:
        return ""
    most, held = max(sizes.values()) or 1, _total([row], "volume", "mask")
    lines = []
    for key, size in sizes.items():
        ratio = f"{held / size:.1f} {BY} smaller" if key in STORES and 0 < size < held else ""
        lines.append(
            f'<tr><th scope="row">{SIZES[key]}</th><td class="number">{_megabytes(size)}</td>'
            f'<td class="bar"><i style="width:{100 * size / most:.1f}%"></i></td><td class="ratio">{ratio}</td></tr>'
        )
    small = " <small>packed, against volume and mask</small>" if held and _total([row], *STORES) else ""
    return f'<h4>Size on disk{small}</h4><table class="bars">{"".join(lines)}</table>'


def _note_list(row, verdict, mask):
    """Warnings of the verdict and flags of the mask: the words and numbers of the JSON, else the code in words."""
    notes = [*(verdict.get("warnings") or []), *(mask.get("flags") or [])]
    found = [(note, "") if isinstance(note, str) else (note.get("code", ""), note.get("detail", "")) for note in notes]
    if mask.get("status") == "no_lungs" and mask.get("reason"):
        found.append(("no_lungs", mask.get("reason", "")))
    said = {code for code, _ in found}
    found += [(code, "") for code in _notes(row) if code not in said]
    if not found:
        return ""
    lines = "".join(f"<li><b>{escape(_words(code))}</b> {escape(str(detail or ''))}</li>" for code, detail in found)
    return f'<ul class="notes">{lines}</ul>'


def _verdict(verdict):
    candidates, files = verdict.get("candidates") or [], verdict.get("files") or {}
    if not candidates and not files:
        return ""
    keys = list(dict.fromkeys(key for candidate in candidates for key in candidate))
    head = "".join(f'<th scope="col">{escape(str(key).replace("_", " "))}</th>' for key in keys)
    lines = "".join(
        f"<tr{' class=chosen' if candidate.get('chosen') else ''}>"
        + "".join(f"<td>{escape(_plain(candidate.get(key)))}</td>" for key in keys)
        + "</tr>"
        for candidate in candidates
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    facts = ""
    for key in ("files", "series", "geometry"):
        if isinstance(verdict.get(key), dict):
            facts += f"<p>{_words(key)}: {escape(_plain(verdict[key]))}</p>"
    words = f"Verdict in detail: {_count(len(candidates), 'series', 'series')}"
    return f'<details class="verdict"><summary>{words}</summary>{facts}{table if candidates else ""}</details>'


def _plain(value):
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{str(key).replace('_', ' ')}: {_plain(item)}" for key, item in value.items())
    return SYNTAXES.get(value) or WORDS.get(value) or str(value)


# ---- times


def _timings(logs, rows):
    """Benchmarks as {"stages": [words, ...], "patients": {id: [[stage, s, CPU s, MB], ...]}}; None where not measured.

    The report's own rule is left out: its benchmark is one of an earlier run.
    """
    rules = [folder.name for folder in logs.iterdir() if folder.is_dir()] if logs.is_dir() else []
    place = {rule: number for number, rule in enumerate(STAGES)}
    rules = sorted((rule for rule in rules if rule != "report"), key=lambda rule: (place.get(rule, len(place)), rule))
    patients = {}
    for row in rows:
        measured = []
        for number, rule in enumerate(rules):
            file = logs / rule / f"{row['patient']}.tsv"
            if _is_file_name(row["patient"]) and file.is_file() and (values := _benchmark(file)):
                measured.append([number, *values])
        if measured:
            patients[row["patient"]] = measured
    return {"stages": [STAGES.get(rule) or _words(rule) for rule in rules], "patients": patients}


def _benchmark(file):
    """Seconds, CPU seconds and MB of the last run in a Snakemake benchmark; None where it holds no number."""
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line]
    if len(lines) < 2:
        return None
    cells = dict(zip(lines[0], lines[-1], strict=False))
    values = [_number(cells.get(key)) for key in ("s", "cpu_time", "max_rss")]
    return values if any(value is not None for value in values) else None
