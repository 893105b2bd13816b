"""Words, number formats and small pieces of HTML that the report's table and its cards share."""

import numpy as np

BY, DASH = "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"
STORES = {"zarr": "Zarr", "zarr_zip": "Zarr, zipped", "bcolz": "bcolz", "hdf5": "HDF5", "npz": "npz"}
# A few words for every code that a verdict, a mask or a table can hold.
LABELS = {
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
    "cut_by_field_of_view": "Lungs cut by the field of view",
    "no_trachea": "No trachea found",
    "dense_lung": "Dense lung may be left out",
    "pure_gas": "Pure gas in the lungs",
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


def label(code):
    """A code in a few words; one without a label is spelled out."""
    return LABELS.get(code) or str(code).replace("_", " ").strip().capitalize()


def plain(value):
    """A value of a JSON file as text: codes and transfer syntaxes in words, collections with commas."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{str(key).replace('_', ' ')}: {plain(item)}" for key, item in value.items())
    return SYNTAXES.get(value) or LABELS.get(value) or str(value)


def number(cell):
    """The number in a cell, None where there is none: '', '-', 'NA', 'nan' or words."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        return None
    return value if np.isfinite(value) else None


def megabytes(value):
    """A size in MB (10^6 bytes) with the unit in which it reads well."""
    if value >= 999.5:
        return f"{value / 1000:.3g} GB" if value < 999500 else f"{value / 1e6:,.3g} TB"
    return f"{value:.0f} MB" if value >= 10 else f"{value:.1f} MB" if value >= 0.95 else f"{value * 1000:.0f} kB"


def product(cell, places=None):
    """A cell such as '133,512,512' with multiplication signs; fractions are rounded to `places`."""
    numbers = [number(part) for part in (cell or "").split(",")]
    if None in numbers:
        return cell or ""
    return f" {BY} ".join(f"{n:g}" if places is None else f"{n:.{places}f}".rstrip("0").rstrip(".") for n in numbers)


def total_mb(rows, *keys):
    """The sizes of some products, added up over rows of cohort.tsv."""
    return sum(number(row.get(f"{key}_mb")) or 0 for row in rows for key in keys)


def lung_volumes(row):
    """Volume of the right and the left lung in ml, or None where the row does not say both."""
    volumes = [number(row.get(f"{side}_ml")) for side in ("right", "left")]
    return None if None in volumes else volumes


def is_accepted(row):
    """Whether the patient's verdict is to go on."""
    return row.get("status") == "accepted"


def display_name(row):
    """The name that the user gave the patient, where there is one."""
    return row.get("name") or row["patient"]


def notes(row):
    """Codes of what a person should look at: the verdict's warnings, the mask's flags, and `no_lungs`."""
    cells = ",".join(row.get(key, "") for key in ("warnings", "mask_flags")).split(",")
    codes = [code.strip() for code in cells if code.strip()]
    if row.get("mask_status") == "no_lungs":
        codes.append("no_lungs")
    return list(dict.fromkeys(codes))


def badge(row):
    """The verdict as a coloured word."""
    kind, word = ("ok", "accepted") if is_accepted(row) else ("no", "rejected")
    return f'<span class="status {kind}">{word}</span>'


def bar(part, whole):
    """A cell with a bar that is as long as the part is of the whole."""
    return f'<td class="bar"><i style="width:{100 * part / whole:.1f}%"></i></td>'
