"""Lung masks by a program of the user's choice, for example a trained network: `segment_with_command`."""

import logging
import shlex
import subprocess
from collections import deque
from pathlib import Path

import numpy as np

from lungmill.config import check_command
from lungmill.errors import LungmillError
from lungmill.files import remove
from lungmill.mask_statistics import LEFT, RIGHT, describe_mask


def segment_with_command(volume, grid, command, *, labels, folder, patient, threads=1, plausible=None):
    """Run a program that maps a volume to a file of labels, and read the lungs out of it.

    volume   int16 HU [z, y, x] of `grid`, written for the program as NIfTI (.nii, not compressed)
    command  the command line: `{volume}` and `{mask}` stand for the two files, `{threads}` for the number of threads.
             It is split like a shell's and run without one: pipes and variables belong into a script of its own
    labels   {"right": [...], "left": [...]}: the values in the program's file that are each lung; others are not lung
    folder   where the two files lie while the program runs; made, and removed afterwards

    Returns (mask, statistics) as `segment_lungs` does. What the program prints goes to the log as it comes. The mask
    may be stored in any order of axes; it must cover the volume's grid. Raises LungmillError, with the patient's name,
    where the program does not exist or fails, or its mask is missing, on another grid or without any of the labels.
    """
    check_command(command, labels)
    folder = Path(folder)
    remove(folder)  # what a killed job left behind
    folder.mkdir(parents=True)
    try:
        source, target = folder / "volume.nii", folder / "mask.nii.gz"
        _write_nifti(source, volume, grid)
        _run(command, {"{volume}": source, "{mask}": target, "{threads}": threads}, patient)
        mask = _read_labels(target, grid, labels, patient)
    finally:
        remove(folder)
    status = {"status": "ok"} if mask.any() else {"status": "no_lungs", "reason": "the program found no lungs"}
    settings = {"command": command, "labels": labels}
    return mask, {"method": "command", **status, **describe_mask(mask, grid.spacing_mm, plausible), **settings}


def _affine(grid):
    """Voxel [x, y, z] to mm in NIfTI's frame, whose x and y point to the right and the front: DICOM's reversed."""
    z, y, x = grid.spacing_mm
    oz, oy, ox = grid.origin_mm
    return np.array([[-x, 0, 0, -ox], [0, -y, 0, -oy], [0, 0, z, oz], [0, 0, 0, 1]])


def _write_nifti(path, volume, grid):
    import nibabel

    image = nibabel.Nifti1Image(volume.T, _affine(grid))
    image.header.set_xyzt_units("mm")
    image.set_sform(_affine(grid), code="scanner")
    image.set_qform(_affine(grid), code="scanner")
    nibabel.save(image, path)


def _run(command, values, patient):
    words = shlex.split(command)
    for placeholder, value in values.items():
        words = [word.replace(placeholder, str(value)) for word in words]
    logging.info("running %s", shlex.join(words))
    last = deque(maxlen=1)
    try:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(words, text=True, errors="replace", **streams)
    except OSError as error:
        raise LungmillError(
            f"{patient}: segment.command: {words[0]} cannot be run ({error.strerror}): install it or correct it"
        ) from None
    with process:
        for line in process.stdout:
            logging.info("%s", line.rstrip())
            last.extend([line.strip()] if line.strip() else [])
    if process.returncode:
        said = f"; its last line: {last[0]}" if last else ""
        raise LungmillError(f"{patient}: segment.command ended with exit code {process.returncode}{said}")


def _read_labels(path, grid, labels, patient):
    import nibabel
    from nibabel import orientations

    if not path.exists():
        raise LungmillError(f"{patient}: segment.command ended well but wrote no {path.name} in place of {{mask}}")
    image = nibabel.load(path)
    if image.ndim != 3:
        raise LungmillError(f"{patient}: the program's mask has {image.ndim} axes instead of 3")
    ours, theirs = (orientations.io_orientation(affine) for affine in (_affine(grid), image.affine))
    image = image.as_reoriented(orientations.ornt_transform(theirs, ours))
    shape = image.shape[::-1]
    # A hundredth of a mm over the whole volume: what 32-bit floats in a header may lose.
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in image.shape), 1]]).T
    if shape != tuple(grid.shape) or np.abs((image.affine - _affine(grid)) @ corners).max() > 0.01:
        raise LungmillError(
            f"{patient}: the program's mask of {shape} voxels lies on another grid than the volume of "
            f"{tuple(grid.shape)}: let it write the mask on the grid of its input"
        )
    values = np.asanyarray(image.dataobj).T
    mask = np.zeros(grid.shape, np.uint8)
    others = set()
    for plane, out in zip(values, mask, strict=True):
        out[np.isin(plane, labels["right"])] = RIGHT
        out[np.isin(plane, labels["left"])] = LEFT
        others.update(np.unique(plane[(out == 0) & (plane != 0)]).tolist())
    if others and not mask.any():
        found = ", ".join(f"{value:g}" for value in sorted(others))
        raise LungmillError(
            f"{patient}: the program's mask holds {found}, none of segment.labels ({labels}): name its lungs there"
        )
    return mask
