"""What a user would write or pick instead of lungmill's steps, in their own words but by the descriptions of 2017.

    python benchmarks/instead.py DICOM_FOLDER OUT

runs the whole recipe of the public tutorials and bowl solutions on one patient: read with pydicom, zoom to 1 mm by
cubic splines, label and fill the lungs, store volume and mask with bcolz at zstd 9. It prints the CPU seconds of the
work, less the imports, and the peak memory of the process, as JSON. One thread.
"""

import json
import os
import resource
import sys
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "BLOSC_NTHREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[variable] = "1"

import numpy as np
from scipy import ndimage

ITK_INTERPOLATORS = {"linear": "sitkLinear", "cubic": "sitkBSpline"}


def read_with_pydicom(folder):
    """Read every file whole, sort by z, convert to HU: the usual ten lines."""
    import pydicom

    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    datasets = [pydicom.dcmread(path, force=True) for path in files]
    datasets = [dataset for dataset in datasets if "PixelData" in dataset and "ImagePositionPatient" in dataset]
    datasets.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    return np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in datasets]).astype(
        np.int16
    )


def zoom_with_scipy(array, source_mm, order):
    return ndimage.zoom(array, np.array(source_mm) / 1.0, order=order)


def resample_with_simpleitk(array, series, grid, method):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    rows, columns = series.geometry.pixel_spacing
    image.SetSpacing((columns, rows, float(np.median(series.geometry.steps_mm))))
    image.SetOrigin(series.geometry.origins[0].tolist())
    interpolator = getattr(sitk, ITK_INTERPOLATORS[method])
    identity = np.eye(3).ravel().tolist()
    result = sitk.Resample(
        image, grid.shape[::-1], sitk.Transform(), interpolator, grid.origin_mm[::-1], grid.spacing_mm[::-1], identity,
        -1024, sitk.sitkInt16,
    )  # fmt: skip
    return sitk.GetArrayFromImage(result)


def load_with_monai(folder, method):
    """A DICOM folder at 1 mm by MONAI's transforms: float32, as training code has it."""
    import torch
    from monai.transforms import Compose, LoadImage, Spacing

    torch.set_num_threads(1)
    mode = {"linear": "bilinear", "cubic": 3}[method]
    steps = [LoadImage(reader="ITKReader", ensure_channel_first=True), Spacing((1.0, 1.0, 1.0), mode=mode)]
    return Compose(steps)(folder).numpy()


def load_with_torchio(folder, method):
    """A DICOM folder at 1 mm by TorchIO, which resamples by SimpleITK."""
    import torchio

    image = torchio.ScalarImage(folder)
    return torchio.Resample(1, image_interpolation={"linear": "linear", "cubic": "bspline"}[method])(image).numpy()


def lungs_of_2017(volume):
    """Threshold, label, fill every slice, keep the largest: the mask of the public 2017 tutorials."""
    from skimage import measure

    binary = (volume > -320).astype(np.int8) + 1
    labels = measure.label(binary)
    binary[labels == labels[0, 0, 0]] = 2
    for plane in binary:
        inside = measure.label(plane - 1)
        sizes = np.bincount(inside.ravel())[1:]
        if len(sizes):
            plane[inside != np.argmax(sizes) + 1] = 1
    binary = 1 - (binary - 1)
    labels = measure.label(binary, background=0)
    sizes = np.bincount(labels.ravel())[1:]
    return labels == np.argmax(sizes) + 1 if len(sizes) else labels > 0


def bcolz_of_2017(path, volume):
    import bcolz

    bcolz.set_nthreads(1)
    params = bcolz.cparams(clevel=9, cname="zstd", shuffle=bcolz.BITSHUFFLE)
    bcolz.carray(volume, rootdir=str(path), mode="w", cparams=params).flush()


def recipe_of_2017(folder, out):
    """All steps on one patient; `out` gets two folders."""
    import pydicom

    volume = read_with_pydicom(folder)
    headers = [pydicom.dcmread(path, force=True, stop_before_pixels=True) for path in Path(folder).rglob("*.dcm")]
    heights = sorted(float(header.ImagePositionPatient[2]) for header in headers if "ImagePositionPatient" in header)
    source_mm = (heights[1] - heights[0], *map(float, headers[0].PixelSpacing))
    volume = zoom_with_scipy(volume, source_mm, 3)
    lungs = lungs_of_2017(volume)
    Path(out).mkdir()
    bcolz_of_2017(Path(out) / "volume", volume)
    bcolz_of_2017(Path(out) / "mask", lungs.astype(np.uint8))


def main(folder, out):
    import bcolz  # noqa: F401
    import pydicom  # noqa: F401
    import skimage.measure  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF)
    recipe_of_2017(folder, out)
    used = resource.getrusage(resource.RUSAGE_SELF)
    user, kernel = used.ru_utime - before.ru_utime, used.ru_stime - before.ru_stime
    print(json.dumps({"cpu_seconds": user + kernel, "kernel_seconds": kernel, "peak_mb": used.ru_maxrss / 1024}))


if __name__ == "__main__":
    main(*sys.argv[1:])
