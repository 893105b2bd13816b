"""Writing arrays that are larger than memory, some elements at a time."""

from pathlib import Path

import numpy as np

from lungmill.errors import LungmillError
from lungmill.files import replacing
from lungmill.training.errors import ArrayError
from lungmill.training.fitting import check_elements, chunk_shape, converted, element_shape, settings_of, whole_number
from lungmill.training.sinks import BcolzFolder, Hdf5, Zarr, one_blosc_thread, sink_of


class BufferedArrayWriter:
    """Collects elements and writes them to an array in blocks of `batch_size`.

    storage_array: a bcolz carray, a zarr array or an HDF5 dataset that can grow gets the elements behind its end; an
    ndarray, a memory map or an HDF5 dataset that cannot grow is written from its first element on, and so is an array
    that has `length` elements already: room made in advance. What is not written keeps its value, and `written` says
    where that begins. data_element_shape, dtype: of one element, and of the storage array's. batch_size: elements in a
    block; it is also what is kept in memory. length: most elements that the storage array may have in the end; None
    leaves it to the array.

    Blocks end at multiples of `batch_size` and go to disk as soon as they are full; `flush_buffer` writes what remains.
    What either has written outlives the process, even one that is killed (see the classes for files; for a power cut
    the operating system has to be asked to sync). Used as a context manager, the writer flushes at the end, after an
    exception too: all that was handed over is then in the array. One writer belongs to one thread.

    Raises ArrayError where the storage array, the elements or their dtype do not fit.

    >>> storage = np.zeros((5, 2), np.int16)
    >>> with BufferedArrayWriter(storage, (2,), np.int16, batch_size=3) as writer:
    ...     writer.buffered_write([1, 2])
    ...     writer.buffered_write([[3, 4], [5, 6], [7, 8]])
    >>> writer.written, storage[:, 0].tolist()
    (4, [1, 3, 5, 7, 0])
    """

    def __init__(self, storage_array, data_element_shape, dtype, batch_size, length=None):
        self._shape = element_shape(data_element_shape)
        self._dtype = np.dtype(dtype)
        self._batch = whole_number("batch_size", batch_size, 1)
        self._sink = sink = sink_of(storage_array)
        self._name = type(sink.array).__name__
        check_elements(sink.array, self._shape, self._dtype, self._name)
        length = None if length is None else whole_number("length", length, 0)
        if length is not None and sink is not storage_array and sink.array.shape[0] == length:
            sink.start = 0
        self._limit = sink.capacity if length is None else length
        if sink.capacity is not None and self._limit > sink.capacity:
            raise ArrayError(
                f"length={length} is more than the {sink.capacity} elements that {self._name} has room for"
            )
        if self._limit is not None and sink.start > self._limit:
            raise ArrayError(f"{self._name}: length={length} is less than the {sink.start} elements that are there")
        self._written = sink.start
        self._buffer = np.empty((self._batch, *self._shape), self._dtype)
        self._filled = 0
        self._closed = False

    @property
    def storage_array(self):
        """The array that is written to."""
        return self._sink.array

    @property
    def written(self):
        """How many elements of the storage array are written, those included that were there before."""
        return self._written

    @property
    def buffered(self):
        """How many elements wait for their block to fill."""
        return self._filled

    def buffered_write(self, data):
        """Take one element, of the element's shape, or any number of them stacked along axis 0.

        A dtype that differs is converted where no value changes but by a float's rounding. Raises ArrayError where
        shape or dtype do not fit, and where the elements are more than `length` leaves room for: then none of these is
        taken, and those before them stay.
        """
        if self._closed:
            raise ValueError(f"{self._name}: this writer is closed")
        data = self._elements(data)
        taken = self._written + self._filled
        if self._limit is not None and taken + len(data) > self._limit:
            raise ArrayError(
                f"{self._name}: {len(data)} elements are too many behind {taken} of {self._limit}: none of them was "
                f"taken, {self._limit - taken} would fit"
            )
        while len(data):
            room = self._batch - (self._written + self._filled) % self._batch  # to the end of the block
            if self._filled == 0 and len(data) >= room:  # whole blocks need no buffer
                count = room + (len(data) - room) // self._batch * self._batch
                self._write(data[:count])
            else:
                count = min(room, len(data))
                self._buffer[self._filled : self._filled + count] = data[:count]
                self._filled += count
                if count == room:
                    self._write_buffer()
            data = data[count:]

    def flush_buffer(self):
        """Write what waits in the buffer; the block goes on where it ends."""
        if self._filled:
            self._write_buffer()
        self._sink.flush()

    def close(self):
        """Flush, and close the file if this writer opened it. Nothing happens the second time."""
        if not self._closed:
            try:
                self.flush_buffer()
            finally:
                self._closed = True
                self._sink.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _write_buffer(self):
        self._write(self._buffer[: self._filled])
        self._filled = 0

    def _write(self, block):
        self._sink.write(self._written, block)
        self._written += len(block)

    def _elements(self, data):
        data = np.asarray(data)
        if data.shape == self._shape:
            data = data[np.newaxis]
        if data.shape[1:] != self._shape or data.ndim != len(self._shape) + 1:
            raise ArrayError(
                f"{self._name}: data of shape {data.shape} is neither one element, {self._shape}, nor a stack of them"
            )
        return data if data.dtype == self._dtype else converted(data, self._dtype, self._name)


class H5pyArrayWriter(BufferedArrayWriter):
    """Writes an array of an HDF5 file in blocks; other arrays in the file are left alone.

    filename, array_name: the file and the name of the array in it, `group/name` too; both are made where they are
    missing. append: go on behind the end of an array that is there; without it such an array is refused, and one of
    other elements always is. length: most elements of the array in the end; it grows as it is written, so one that
    is filled less is no longer than what was written. kwargs: for `h5py.Group.create_dataset`, `chunks` and
    `compression` for instance; the default is chunks of about 1 MB without compression, which read fastest.

    The other parameters, the blocks and the context manager are BufferedArrayWriter's. The file is open until `close`.
    Each block is handed to the operating system with all that HDF5 needs to find it, so a process that is killed
    leaves a file that opens and holds what was flushed. HDF5 keeps no journal, so two things remain: killed within
    that hand-over, which takes less than a millisecond, the block under way may be in the array as zeros; and with
    compression, a chunk that `flush_buffer` wrote before it was full may be lost while it is written anew. Where that
    is too much, ZarrArrayWriter and BcolzArrayWriter may be killed at any moment.

    The same input gives the same bytes. Raises LungmillError where file or array cannot be used.
    """

    def __init__(
        self, data_element_shape, dtype, batch_size, filename, array_name, length=None, append=False, kwargs=None
    ):
        import h5py

        shape, dtype = element_shape(data_element_shape), np.dtype(dtype)
        chunks = chunk_shape(shape, dtype, whole_number("batch_size", batch_size, 1), length)
        settings = {"chunks": chunks, "track_times": False, **settings_of(kwargs, "shape", "dtype", "data", "maxshape")}
        Path(filename).parent.mkdir(parents=True, exist_ok=True)
        try:
            file = h5py.File(filename, "a")
        except OSError as error:
            raise LungmillError(f"{filename}: cannot be opened for writing as HDF5: {error}") from error
        try:
            if array_name not in file:
                file.create_dataset(array_name, (0, *shape), dtype, maxshape=(None, *shape), **settings)
                file.flush()
            elif not append:
                raise _there_already(filename, array_name)
            array = file[array_name]
            if not isinstance(array, h5py.Dataset):
                raise LungmillError(f"{filename}: {array_name} is a group, not an array: give another name")
            check_elements(array, shape, dtype, f"{filename}: {array_name}")
            if array.maxshape[0] is not None and array.maxshape[0] <= array.shape[0]:
                raise LungmillError(f"{filename}: {array_name} cannot grow: write to another array")
            super().__init__(Hdf5(array, file), shape, dtype, batch_size, length)
        except BaseException:
            file.close()
            raise
        self._name = f"{filename}: {array_name}"


class ZarrArrayWriter(BufferedArrayWriter):
    """Writes an array of a zarr group in blocks; other arrays in the group are left alone.

    filename: folder of the group, or a zarr store. kwargs: for `zarr.Group.create_array`, `chunks`, `shards` and
    `compressors` for instance; the default is chunks of about 1 MB with Blosc (zstd 3, bitshuffle). The other
    parameters are H5pyArrayWriter's.

    A process may be killed at any moment: the chunks are written before the length that takes them in, and each file
    takes its name when it is complete. The same input gives the same bytes. Raises LungmillError where folder or array
    cannot be used.
    """

    def __init__(
        self, data_element_shape, dtype, batch_size, filename, array_name, length=None, append=False, kwargs=None
    ):
        import zarr
        from zarr.codecs import BloscCodec

        shape, dtype = element_shape(data_element_shape), np.dtype(dtype)
        settings = {
            "chunks": chunk_shape(shape, dtype, whole_number("batch_size", batch_size, 1), length),
            "compressors": BloscCodec(typesize=dtype.itemsize, cname="zstd", clevel=3, shuffle="bitshuffle"),
            "fill_value": 0,
            **settings_of(kwargs, "name", "shape", "dtype", "data", "overwrite"),
        }
        try:
            group = zarr.open_group(filename, mode="a")
        except (OSError, ValueError) as error:
            raise LungmillError(f"{filename}: cannot be opened for writing as a zarr group: {error}") from error
        if array_name not in group:
            group.create_array(array_name, shape=(0, *shape), dtype=dtype, **settings)
        elif not append:
            raise _there_already(filename, array_name)
        array = group[array_name]
        if not isinstance(array, zarr.Array):
            raise LungmillError(f"{filename}: {array_name} is a group, not an array: give another name")
        check_elements(array, shape, dtype, f"{filename}: {array_name}")
        super().__init__(Zarr(array), shape, dtype, batch_size, length)
        self._name = f"{filename}: {array_name}"


class BcolzArrayWriter(BufferedArrayWriter):
    """Writes a bcolz array, which is a folder, in blocks.

    save_path: the folder. kwargs: for `bcolz.carray`, `cparams` and `chunklen` for instance; the default is chunks of
    about 1 MB with Blosc (zstd 3, bitshuffle). The other parameters are H5pyArrayWriter's.

    A process may be killed at any moment: each file takes its name when it is complete, that of the length last. The
    same input gives the same bytes. Raises LungmillError where the folder cannot be used.
    """

    def __init__(self, data_element_shape, dtype, batch_size, save_path, length=None, append=False, kwargs=None):
        try:
            import bcolz
        except ModuleNotFoundError as error:
            raise LungmillError(
                f"{save_path}: bcolz needs the package bcolz-zipline; use ZarrArrayWriter where there is none"
            ) from error

        shape, dtype, path = element_shape(data_element_shape), np.dtype(dtype), Path(save_path)
        settings = {
            "chunklen": chunk_shape(shape, dtype, whole_number("batch_size", batch_size, 1), length)[0],
            "cparams": bcolz.cparams(clevel=3, cname="zstd", shuffle=bcolz.BITSHUFFLE),
            **settings_of(kwargs, "array", "dtype", "rootdir", "mode"),
        }
        if not path.exists():
            with replacing(path) as temporary, one_blosc_thread():
                bcolz.carray(np.empty((0, *shape), dtype), rootdir=str(temporary), **settings).flush()
        elif not append:
            raise _there_already(path, "the array")
        try:
            sink = BcolzFolder(path)
        except (OSError, ValueError, KeyError) as error:
            raise LungmillError(f"{path}: cannot be opened as a bcolz array: {error}") from error
        check_elements(sink.array, shape, dtype, path)
        super().__init__(sink, shape, dtype, batch_size, length)
        self._name = str(path)


def _there_already(path, name):
    return LungmillError(f"{path}: {name} is there already: append=True goes on behind its end, or delete it first")
