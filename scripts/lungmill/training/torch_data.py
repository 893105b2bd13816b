"""Data of lungmill for torch: a map-style dataset over arrays, and an iterable one over the batches of a DataFlow.

This module alone imports torch; nothing else of the library imports this module.
"""

import copy
import itertools

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from lungmill.training.dataflow import DataFlow
from lungmill.training.errors import ArrayError


class ArrayDataset(Dataset):
    """Elements of arrays in tandem, read when they are asked for: a `torch.utils.data.Dataset`.

    arrays: anything with a length that is indexed like NumPy's arrays: ndarrays, memory maps, DelayedView,
    MultiSourceArray, the images, masks and labels of a PatchSource. transform: a function from the NumPy arrays of one
    element to as many arrays, numbers or tensors, called in the DataLoader's workers.

    `dataset[i]` is a tuple with one entry per array, or the entry itself for a single array: a tensor of the array's
    dtype, or a number. A DataLoader fetches a batch by one read, grouped by store; its workers are given the arrays'
    files, not what they hold. Raises ArrayError where the arrays differ in length.

    >>> images, labels = np.arange(12, dtype=np.int16).reshape(3, 2, 2), np.array([0, 1, 0])
    >>> ArrayDataset(images, labels)[1]
    (tensor([[4, 5],
            [6, 7]], dtype=torch.int16), 1)
    """

    def __init__(self, *arrays, transform=None):
        lengths = [len(array) for array in arrays]
        if not arrays or len(set(lengths)) > 1:
            raise ArrayError(f"arrays of lengths {lengths}: give arrays of one length, one at least")
        self._arrays, self._transform = arrays, transform

    def __len__(self):
        return len(self._arrays[0])

    def __getitem__(self, index):
        return self._element([array[index] for array in self._arrays])

    def __getitems__(self, indices):
        """The elements at a list of indices, in one read: what a DataLoader calls for a batch."""
        indices = np.asarray(indices)
        batch = [array[indices] for array in self._arrays]
        return [self._element([values[place] for values in batch]) for place in range(len(indices))]

    def _element(self, values):
        if self._transform is not None:
            values = self._transform(*values)
            values = values if isinstance(values, (tuple, list)) else [values]
        found = tuple(_tensor(value) for value in values)
        return found[0] if len(found) == 1 else found


class PatchDataset(ArrayDataset):
    """The patches of a PatchSource as an ArrayDataset: (image, label), or (image, mask, label) with masks.

    `set_epoch(n)` moves on to the patches of the n-th epoch, in the workers of a DataLoader too, the persistent ones
    included: call it before each epoch, as with torch's DistributedSampler. A DataLoader needs no `shuffle=True`: the
    elements of a source are in random order as they are.
    """

    def __init__(self, source, masks=False, transform=None):
        self._first, self._masks = source, masks
        self._epoch = _shared_number()
        self._arrays_of = None
        super().__init__(*_arrays(source, masks), transform=transform)

    def set_epoch(self, number):
        self._epoch.fill_(number)

    def _turn_over(self):
        epoch = int(self._epoch)
        if epoch != self._arrays_of:
            self._arrays = _arrays(self._first.epoch(epoch), self._masks)
            self._arrays_of = epoch

    def __getitem__(self, index):
        self._turn_over()
        return super().__getitem__(index)

    def __getitems__(self, indices):
        self._turn_over()
        return super().__getitems__(indices)


class FlowDataset(IterableDataset):
    """The batches of a DataFlow as a `torch.utils.data.IterableDataset` of lists of tensors.

    Use it with `DataLoader(dataset, batch_size=None, num_workers=n)`. The workers share the batches out among
    themselves, each reading and preprocessing its own only, and the DataLoader returns them in the order of the flow:
    the batches are the same ones for any number of workers, and come again the same with the same seed. Every iteration
    starts at the beginning of the epoch that `set_epoch` chose, 0 at first. A flow with `loop_forever` never ends, one
    without is an epoch.

    The flow's own threads read in every worker. Its processes cannot start there, because torch's workers may not have
    children: the preprocessor then runs in the worker itself, with the same results.

    Raises ArrayError for a flow that filters or branches in more than one worker: how its elements fall into batches is
    known only to whoever has read them all.
    """

    def __init__(self, flow):
        if not isinstance(flow, DataFlow):
            raise ArrayError(f"{flow!r} is no DataFlow")
        self._flow = flow
        self._epoch = _shared_number()

    def set_epoch(self, number):
        """Let the next iteration begin with the n-th epoch, in persistent workers too."""
        self._epoch.fill_(number)

    def __len__(self):
        """Batches in an epoch; TypeError for a flow that loops forever."""
        if self._flow._loop_forever:
            raise TypeError("a DataFlow with loop_forever=True has no length")
        return len(self._flow)

    def __iter__(self):
        worker = get_worker_info()
        flow = copy.copy(self._flow)
        state = flow.state_dict()
        flow.load_state_dict(state | {"epoch": int(self._epoch), "batch": 0, "skip": 0})
        if worker is not None and worker.num_workers > 1:
            _share_out(flow, worker.id, worker.num_workers)
        for batch in flow.flow():
            yield [_tensor(array) for array in batch]


def _share_out(flow, first, step):
    """Let a flow read every `step`-th of its batches only, from number `first` on."""
    if flow._reforms:
        raise ArrayError("a DataFlow with Keep or Branch needs num_workers=0 or 1 in torch's DataLoader")
    chunks = flow._chunks
    flow._chunks = lambda *where: itertools.islice(chunks(*where), first, None, step)


def _arrays(source, masks):
    return (source.images, source.masks, source.labels) if masks else (source.images, source.labels)


def _shared_number():
    return torch.zeros((), dtype=torch.int64).share_memory_()


def _tensor(value):
    """A tensor over a NumPy array's memory, a number for a NumPy number; anything else as it is."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value if value.flags.writeable else value.copy())
    return value.item() if isinstance(value, np.generic) else value
