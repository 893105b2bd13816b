"""A patient's card in the report: pictures, lung volumes, sizes, what to look at, and the verdict in detail."""

import base64
import re
from html import escape

import numpy as np

from lungmill import pictures
from lungmill.errors import LungmillError
from lungmill.files import read_json
from lungmill.report_words import (
    BY,
    STORES,
    SYNTAXES,
    badge,
    bar,
    display_name,
    is_accepted,
    label,
    lung_volumes,
    megabytes,
    notes,
    number,
    plain,
    product,
    total_mb,
)
from lungmill.verdict import REASONS, WARNINGS

SIZES = {
    "dicom": "DICOM",
    "volume": "Volume, .npy",
    "mask": "Mask, .npy",
    "positions": "Positions",
    **STORES,
    "patches": "Patches",
}
# The page's script fills it in.
TIMES = '<div class="times" hidden><h4>Time and memory</h4><div class="scroll"><table></table></div></div>'


def card(row, results, picture, is_open):
    """The HTML of a patient's card.

    :param row: the patient's row of cohort.tsv with `split`, `label` and the page's `anchor`
    :param results: the folder with index/, volumes/ and masks/; what is not there is left out
    :param picture: width in pixels and WebP quality
    :param is_open: whether the card starts open
    :raises LungmillError: one of the patient's files is damaged
    """
    verdict, volume, mask = (_sidecar(results / folder, row["patient"]) for folder in ("index", "volumes", "masks"))
    listed = _note_list(row, verdict, mask)
    if is_accepted(row):
        short = ", ".join(map(label, notes(row)))
        facts = f'<div class="facts">{_facts(row)}{_histogram(volume)}{_sizes(row)}</div>'
        seen = f"<div>{_figure(row, results, volume, mask, picture)}{listed}</div>"
        body = f'<div class="columns">{seen}{facts}</div>{TIMES}'
    else:
        reason = row.get("reason", "")
        short, detail = label(reason), row.get("detail") or REASONS.get(reason, "")
        body = f'<p class="reason"><b>{escape(short)}.</b> {escape(detail)}</p>{listed}'
    return (
        f'<details class="card" data-id="{escape(row["patient"])}"{" open" if is_open else ""}>'
        f'<summary><h3>{escape(display_name(row))}</h3>{badge(row)}<span class="short">{escape(short)}</span></summary>'
        f'<div class="body" id="{row["anchor"]}">{body}{_verdict(verdict)}</div></details>\n'
    )


def is_file_name(patient):
    """Whether an id can be part of a path; the page does not trust the table that it reads."""
    return re.fullmatch(r"[\w-][\w.-]*", patient, re.ASCII) is not None


def patient_file(folder, patient, suffix):
    """A patient's file in a folder, None where there is none."""
    file = folder / f"{patient}{suffix}"
    return file if is_file_name(patient) and file.is_file() else None


def _sidecar(folder, patient):
    file = patient_file(folder, patient, ".json")
    return read_json(file) if file else {}


def _array(folder, patient):
    file = patient_file(folder, patient, ".npy")
    if file is None:
        return None
    try:
        return np.load(file, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise LungmillError(f"{file} is not a whole NumPy file ({error}): delete it and run again") from error


def _figure(row, results, volume, mask, picture):
    image, labels = (_array(results / folder, row["patient"]) for folder in ("volumes", "masks"))
    spacing = volume.get("spacing_mm")
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
        f'loading="lazy" alt="Axial, coronal and sagittal slices of {escape(display_name(row))}"></div>'
        '<figcaption><span class="key right">right lung</span> <span class="key left">left lung</span> '
        "Lung window, &minus;1350 to 150 HU. z, y and x are indices of the resampled array; "
        "the marks on the coronal view are the axial slices.</figcaption></figure>"
    )


def _facts(row):
    volumes, syntax = lung_volumes(row), row.get("transfer_syntax", "")
    slices = f"{row['n_slices']} slices" if row.get("n_slices") else ""
    facts = [
        ("Lungs", "{:,.0f} ml: right {:,.0f}, left {:,.0f}".format(sum(volumes), *volumes) if volumes else ""),
        ("Scan", _lattice(row, "source_shape", "source_spacing_mm") or slices),
        ("Array", _lattice(row, "shape", "spacing_mm")),
        ("Orientation", row.get("orientation", "")),
        ("Stored as", SYNTAXES.get(syntax, syntax)),
        ("Split", row["split"]),
        ("Label", row["label"]),
    ]
    return "<dl>" + "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts if value) + "</dl>"


def _lattice(row, shape, spacing):
    if not row.get(shape):
        return ""
    return product(row[shape]) + (f", {product(row[spacing], 3)} mm" if row.get(spacing) else "")


def _histogram(volume):
    found = volume.get("hu_histogram")
    if not found:
        return ""
    drawing = pictures.histogram_svg(found["counts"], found["start_hu"], found["width_hu"])
    return f"<h4>Hounsfield units <small>share of all voxels</small></h4>{drawing}" if drawing else ""


def _sizes(row):
    sizes = {key: size for key in SIZES if (size := number(row.get(f"{key}_mb"))) is not None}
    if not sizes:
        return ""
    most, held = max(sizes.values()) or 1, total_mb([row], "volume", "mask")
    lines = []
    for key, size in sizes.items():
        ratio = f"{held / size:.1f} {BY} smaller" if key in STORES and 0 < size < held else ""
        lines.append(
            f'<tr><th scope="row">{SIZES[key]}</th><td class="number">{megabytes(size)}</td>'
            f'{bar(size, most)}<td class="ratio">{ratio}</td></tr>'
        )
    small = " <small>packed, against volume and mask</small>" if held and total_mb([row], *STORES) else ""
    return f'<h4>Size on disk{small}</h4><table class="bars">{"".join(lines)}</table>'


def _note_list(row, verdict, mask):
    """What to look at, with the numbers that the JSON files give; what only the table knows, in a general sentence."""
    found = [(note["code"], note["detail"]) for note in [*verdict.get("warnings", ()), *mask.get("flags", ())]]
    if mask.get("reason"):
        found.append((mask["status"], mask["reason"]))
    known = {code for code, _ in found}
    found += [(code, WARNINGS.get(code, "")) for code in notes(row) if code not in known]
    if not found:
        return ""
    lines = "".join(f"<li><b>{escape(label(code))}</b> {escape(detail)}</li>" for code, detail in found)
    return f'<ul class="notes">{lines}</ul>'


def _verdict(verdict):
    candidates, files = verdict.get("candidates") or [], verdict.get("files") or {}
    if not candidates and not files:
        return ""
    keys = list(dict.fromkeys(key for candidate in candidates for key in candidate))
    head = "".join(f'<th scope="col">{escape(str(key).replace("_", " "))}</th>' for key in keys)
    lines = "".join(
        f"<tr{' class=chosen' if candidate.get('chosen') else ''}>"
        + "".join(f"<td>{escape(plain(candidate.get(key)))}</td>" for key in keys)
        + "</tr>"
        for candidate in candidates
    )
    table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
    facts = "".join(
        f"<p>{label(key)}: {escape(plain(verdict[key]))}</p>"
        for key in ("files", "series", "geometry")
        if verdict.get(key)
    )
    words = f"Verdict in detail: {len(candidates):,} series"
    return f'<details class="verdict"><summary>{words}</summary>{facts}{table if candidates else ""}</details>'
