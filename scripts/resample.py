"""Resample one patient's series to the output grid: verdict and DICOM folder in, volume and its geometry out."""

import _job

_job.start(snakemake)

from lungmill.files import read_json
from lungmill.progress import bar
from lungmill.resampling import chosen_device, resample
from lungmill.series import read_series
from lungmill.sidecar import write_array
from lungmill.volume import CountedVolume, describe_volume

step = snakemake.params.step
device = chosen_device(step["device"])
series = read_series(snakemake.input.get("dicom") or step["dicom"], read_json(snakemake.input.verdict))


def make(create):
    volume, grid = resample(
        series,
        spacing_mm=step["spacing"],
        interpolation=step["interpolation"],
        out=lambda shape: CountedVolume(create(shape, "int16")),
        progress=bar(f"resample {snakemake.wildcards.patient}"),
        device=device,
    )
    described = describe_volume(volume, grid, series, step["interpolation"])
    return described if device == "cpu" else {**described, "device": device}


write_array(snakemake.output.volume, snakemake.output.geometry, snakemake.wildcards.patient, make)
