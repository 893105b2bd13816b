"""Label the lungs of one patient: volume in; mask, what was measured on it, and sampling positions out."""

import _job

_job.start(snakemake)

from lungmill.mask_statistics import Plausible
from lungmill.positions import sampling_positions, write_positions
from lungmill.segment_command import segment_with_command
from lungmill.segmentation import segment_lungs
from lungmill.sidecar import open_volume, write_array

patient, output, step = snakemake.wildcards.patient, snakemake.output, snakemake.params.step["segment"]
volume, grid, _ = open_volume(snakemake.input.volume, snakemake.input.geometry)
plausible = Plausible(
    total_ml=tuple(step["expected_ml"]),
    ratio=step["expected_ratio"],
    border_cm2=step["expected_border_cm2"],
    dense_ml=step["expected_dense_ml"],
    gas_ml=step["expected_gas_ml"],
)


def make(create):
    if step["method"] == "command":
        program = {"folder": f"{output.mask}.command", "patient": patient, "threads": snakemake.threads}
        mask, measured = segment_with_command(
            volume, grid, step["command"], labels=step["labels"], plausible=plausible, **program
        )
    else:
        settings = {key: step[key] for key in ("threshold_hu", "closing_mm", "min_lung_ml")}
        mask, measured = segment_lungs(volume, grid.spacing_mm, plausible=plausible, **settings)
    positions = sampling_positions(
        volume, mask, grid.spacing_mm, number=step["positions"], pleura_mm=step["pleura_mm"], patient=patient
    )
    write_positions(output.positions, positions)
    create(mask.shape, mask.dtype)[:] = mask
    return {**grid.as_dict(), **measured}


write_array(output.mask, output.labels, patient, make)
