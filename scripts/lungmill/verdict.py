"""What a verdict says. `results/index/{patient}.json` holds, for every patient:

- `status`: accepted or rejected; `reason`: None or a code of `REASONS`; `detail`: the reason in words, with numbers
- `warnings`: list of {code, detail}, codes of `WARNINGS`
- `candidates`: every group of slices that might have been the scan, best first: hashed series, number of slices,
  orientation, step, whether original, and whether it was chosen or, in `detail`, why not. `score`: usable, CT, no
  localizer, original, axial (1 or 0 each), slices, step in mm, compared in this order; more is better, but of steps the
  smaller; equals go by hashed UID
- `files`: how many files are DICOM, are not, cannot be read

and for an accepted one:

- `series`: hashed UID, vendor, transfer syntax, thickness, kVp, size of its files
- `geometry`: nearest orientation, `directions` (ImageOrientationPatient made exact), `pixel_spacing` (between rows,
  between columns), `shape` (slices, rows, columns), median `step_mm`, `tilt_degrees`
- `slices`: in order along the normal: file, frame (from 0) and how many the file has, position (ImagePositionPatient:
  x, y, z in LPS mm), and what decoding needs: matrix, transfer syntax, offset of the pixel data (None where deflated),
  bits, sign, rescale slope and intercept, whether a Modality LUT takes their place, padding as a closed range
"""

REASONS = {
    "no_dicom": "the folder holds no DICOM file",
    "no_ct_series": "the folder holds no CT image series",
    "too_few_slices": "the series has fewer slices than series.min_slices",
    "missing_slices": "slices are missing, a gap is wider than series.max_gap allows",
    "truncated_pixels": "a file ends before its pixel data do",
    "unreadable": "files cannot be parsed or decoded",
    "unsupported_transfer_syntax": "the pixels are compressed in a way that no installed decoder reads",
    "inconsistent_geometry": "positions or orientations contradict each other",
    "no_geometry": "the files do not say where their slices lie",
    "not_axial": "the slices are not in an orientation that series.orientations lists",
    "implausible_hu": "the values are not Hounsfield units",
}
WARNINGS = {
    "gantry_tilt": "the gantry was tilted; resampled from the true positions",
    "irregular_spacing": "the distances between slices differ; resampled from the true positions",
    "missing_slices": "single slices are missing; interpolated from their neighbours",
    "duplicate_slices": "exact copies of slices were dropped",
    "several_series": "the folder holds several CT series; the best was taken",
    "lossy_compression": "pixels were compressed with loss",
    "ignored_files": "some files are not DICOM or cannot be read",
    "padding": "the header declares a padding value; taken as air",
}
