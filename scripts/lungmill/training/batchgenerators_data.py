"""A batchgenerators DataLoader over the patches of a PatchSource, or over any arrays in tandem.

This module alone imports batchgenerators; nothing else of the library imports this module.
"""

import numpy as np
from batchgenerators.dataloading.data_loader import DataLoader

from lungmill.training.errors import ArrayError
from lungmill.training.patch_source import PatchSource


class PatchLoader(DataLoader):
    """Batches as batchgenerators' transforms want them: {"data": float32 (b, 1, ...), "seg": float32 (b, 1, ...), ...}.

    source: a PatchSource, or a dict of arrays of equal length with at least "data". Of a source, "class" is the place
    of each patch in its classes, and "keys" its number in the epoch; "seg" is the lung mask, left out with masks=False.
    Of a dict, "data" and "seg" get a channel axis and become float32, the others come as they are. batch_size: patches
    in a batch.

    num_threads_in_multithreaded: processes of the MultiThreadedAugmenter that shares one epoch out among them; the
    batches then come in the same order for any number of processes. shuffle: in random order; a source's patches are
    so from the start. infinite: another epoch of a source follows each, without end; elements of a dict are drawn at
    random. The other arguments are those of batchgenerators' DataLoader.

    Raises ArrayError where the arrays differ in length.
    """

    def __init__(
        self, source, batch_size, num_threads_in_multithreaded=1, seed_for_shuffle=None, return_incomplete=False,
        shuffle=False, infinite=False, sampling_probabilities=None, *, masks=True,
    ):  # fmt: skip
        super().__init__(
            source, batch_size, num_threads_in_multithreaded, seed_for_shuffle, return_incomplete, shuffle, infinite,
            sampling_probabilities,
        )  # fmt: skip
        self._masks = masks
        self._arrays, self._epoch, self._given = self._arrays_of(source), 0, 0
        lengths = {name: len(array) for name, array in self._arrays.items()}
        if "data" not in lengths or len(set(lengths.values())) > 1:
            raise ArrayError(f'arrays of lengths {lengths}: give arrays of one length, "data" among them')
        self.indices = np.arange(lengths["data"])
        self._goes_on = infinite and isinstance(source, PatchSource) and sampling_probabilities is None
        if self._goes_on and len(self.indices) < batch_size:
            raise ArrayError(f"an epoch of {len(self.indices)} patches has no batch of {batch_size}")

    def get_indices(self):
        """Numbers of the elements of the next batch; StopIteration at the end of an epoch."""
        if not self._goes_on:
            return super().get_indices()
        # The batches of epoch after epoch, every process taking those that are its own.
        batches = len(self.indices) // self.batch_size
        epoch, batch = divmod(self._given * self.number_of_threads_in_multithreaded + self.thread_id, batches)
        self._given += 1
        if epoch != self._epoch:
            self._arrays, self._epoch = self._arrays_of(self._data.epoch(epoch)), epoch
        return self.indices[batch * self.batch_size : (batch + 1) * self.batch_size]

    def generate_train_batch(self):
        """The next batch, each array of it by one read."""
        indices = np.asarray(self.get_indices())
        batch = {name: array[indices] for name, array in self._arrays.items()}
        for name in {"data", "seg"} & set(batch):
            batch[name] = batch[name][:, np.newaxis].astype(np.float32)
        return batch | {"keys": indices}

    def _arrays_of(self, source):
        if not isinstance(source, PatchSource):
            return dict(source)
        arrays = {"data": source.images, "class": source.labels}
        return arrays | {"seg": source.masks} if self._masks else arrays
