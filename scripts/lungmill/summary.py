"""The cohort's tables: one row per patient, from the JSON files that the steps leave behind."""

from pathlib import Path

from lungmill.dataset import PRODUCTS
from lungmill.files import read_json, write_json, write_tsv

VERDICT_COLUMNS = ("patient", "name", "status", "reason", "detail", "warnings", "n_slices")
GEOMETRY_COLUMNS = (
    "orientation",
    "source_spacing_mm",
    "source_shape",
    "transfer_syntax",
    "spacing_mm",
    "shape",
)
MASK_COLUMNS = ("right_ml", "left_ml", "mask_status", "mask_flags", "mask_detail")


def write_verdicts(path, index_files: dict, names: dict):
    """Write a row per patient with its verdict.

    index_files: patient id to its verdict's JSON file. names: patient id to the name that the user gave it.
    """
    rows = [_verdict_row(patient, read_json(file), names) for patient, file in index_files.items()]
    write_tsv(path, VERDICT_COLUMNS, rows)


def write_cohort(path, patients, names: dict):
    """Write cohort.tsv: verdict, geometry, lung volumes and sizes of every patient, from the results beside it.

    patients: ids of all patients, accepted or not; a rejected one has a verdict and nothing else.
    """
    results = Path(path).parent
    rows = [_cohort_row(results, patient, names) for patient in patients]
    sizes = tuple(f"{name}_mb" for name in ("dicom", *PRODUCTS))
    write_tsv(path, (*VERDICT_COLUMNS, *GEOMETRY_COLUMNS, *MASK_COLUMNS, *sizes), rows)


def write_sizes(path, products: dict):
    """Write the sizes of a patient's products in 10^6 bytes: they are read instead of products that are not there.

    products: name out of `PRODUCTS` to the file, or the zarr.json of the group.
    """
    places = {name: Path(file).parent if name == "zarr" else Path(file) for name, file in products.items()}
    write_json(path, {name: _megabytes(place) for name, place in places.items()})


def product_megabytes(results, patient) -> dict:
    """Sizes of a patient's products in 10^6 bytes, measured or as `write_sizes` left them; None where there is none."""
    written = Path(results) / "products" / f"{patient}.json"
    if written.is_file():
        return dict.fromkeys(PRODUCTS) | read_json(written)
    return {name: _megabytes(Path(results) / place.format(patient)) for name, place in PRODUCTS.items()}


def _verdict_row(patient, verdict, names):
    return {
        "patient": patient,
        "name": names.get(patient, patient),
        "status": verdict["status"],
        "reason": verdict["reason"],
        "detail": verdict["detail"],
        "warnings": [warning["code"] for warning in verdict["warnings"]],
        "n_slices": len(verdict.get("slices", ())) or None,
    }


def _cohort_row(results, patient, names):
    verdict = read_json(results / "index" / f"{patient}.json")
    row = _verdict_row(patient, verdict, names)
    if verdict["status"] != "accepted":
        return row
    volume = read_json(results / "volumes" / f"{patient}.json")
    mask = read_json(results / "masks" / f"{patient}.json")
    source = volume["source"]
    row |= {
        "orientation": verdict["geometry"]["orientation"],
        "source_spacing_mm": [f"{mm:g}" for mm in source["spacing_mm"]],
        "source_shape": source["shape"],
        "transfer_syntax": source["transfer_syntax"],
        "spacing_mm": [f"{mm:g}" for mm in volume["spacing_mm"]],
        "shape": volume["shape"],
        "right_ml": mask["volume_ml"]["right"],
        "left_ml": mask["volume_ml"]["left"],
        "mask_status": mask["status"],
        "mask_flags": [flag["code"] for flag in mask["flags"]],
        "mask_detail": "; ".join(_mask_details(mask)),
        "dicom_mb": verdict["series"]["megabytes"],
    }
    for name, size in product_megabytes(results, patient).items():
        row[f"{name}_mb"] = size
    return row


def _mask_details(mask):
    """The words behind the flags, each with the number that made it so."""
    return [*([mask["reason"]] if mask["status"] != "ok" else []), *(flag["detail"] for flag in mask["flags"])]


def _megabytes(path):
    """Size of a file, or of all files of a store, in 10^6 bytes; None where there is none."""
    if not path.exists():
        return None
    files = path.rglob("*") if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in files if file.is_file()) / 1e6, 3)
