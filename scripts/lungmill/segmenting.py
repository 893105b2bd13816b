"""One patient's lungs by the method that the settings name, and what training wants with them: `segment`."""

from lungmill.mask_statistics import Plausible
from lungmill.positions import sampling_positions
from lungmill.segment_command import segment_with_command
from lungmill.segmentation import segment_lungs


def segment(volume, grid, settings, *, patient, folder, threads=1):
    """Label the lungs of a volume and draw its sampling positions.

    volume: int16 HU [z, y, x] of `grid`. settings: the section `segment` of config.yaml. folder: where files for a
    program of the user's lie while it runs. Returns (mask, statistics, positions) as `segment_lungs` or
    `segment_with_command` and `sampling_positions` describe them, and raises what they raise.
    """
    plausible = Plausible(
        total_ml=tuple(settings["expected_ml"]),
        ratio=settings["expected_ratio"],
        border_cm2=settings["expected_border_cm2"],
        dense_ml=settings["expected_dense_ml"],
        gas_ml=settings["expected_gas_ml"],
    )
    if settings["method"] == "command":
        mask, statistics = segment_with_command(
            volume,
            grid,
            settings["command"],
            labels=settings["labels"],
            folder=folder,
            patient=patient,
            threads=threads,
            plausible=plausible,
        )
    else:
        thresholds = {key: settings[key] for key in ("threshold_hu", "closing_mm", "min_lung_ml")}
        mask, statistics = segment_lungs(volume, grid.spacing_mm, plausible=plausible, **thresholds)
    positions = sampling_positions(
        volume,
        mask,
        grid.spacing_mm,
        number=settings["positions"],
        pleura_mm=settings["pleura_mm"],
        patient=patient,
        box=statistics["bounding_box"],
    )
    return mask, statistics, positions
