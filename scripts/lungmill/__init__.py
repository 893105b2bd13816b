"""lungmill: chest-CT DICOM folders to training-ready arrays.

Public names are imported when they are first used, so `import lungmill` costs nothing.
"""

import importlib

from lungmill.version import __version__

_HOMES = {
    "series": ["Series", "read_series"],
    "indexing": ["index"],
    "resampling": ["output_grid", "resample"],
    "volume": ["hounsfield_histogram"],
    "segmentation": ["segment_lungs"],
    "packing": ["pack"],
    "segmenting": ["segment"],
    "segment_command": ["segment_with_command"],
    "mask_statistics": ["Plausible", "describe_mask"],
    "patches": ["crop_center", "cut_patches"],
    "positions": ["body_mask", "read_positions", "sampling_positions"],
    "dataset": ["make_dataset", "split_of"],
    "annotations": ["Nodule", "nodules_of", "read_annotations"],
    "cohort": ["Cohort", "open_cohort"],
    "joining": ["join_cohorts"],
    "pictures": ["montage"],
    "training.views": ["DelayedView", "MultiSourceArray"],
    "training.writers": ["BcolzArrayWriter", "BufferedArrayWriter", "H5pyArrayWriter", "ZarrArrayWriter"],
    "training.dataflow": ["DataFlow"],
    "training.stages": ["Branch", "Keep", "Stage"],
    "training.failures": ["FlowError"],
    "training.patch_source": ["PatchSource"],
    "training.sliding_window": ["SlidingWindows"],
    "training.patch_generator": ["PatchGenerator", "create_dataset"],
    "training.augmentation": ["draw_image_transform", "image_random_transform", "image_stack_random_transform"],
    "training.image_transform": ["ImageTransform"],
    "training.composition": ["Compose"],
    "training.random_transforms": [
        "RandomAffine",
        "RandomBlur",
        "RandomElastic",
        "RandomFlip",
        "RandomGamma",
        "RandomIntensity",
        "RandomNoise",
    ],
    "training.replay": ["transform_from_dict"],
    "grid": ["Grid"],
    "errors": ["ConfigError", "DicomError", "LungmillError"],
    "training.errors": ["ArrayError"],
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lungmill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lungmill.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *_HOME_OF])
