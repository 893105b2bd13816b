"""What a consumer of batches is told when reading, a preprocessor or a worker process fails."""

from lungmill.errors import LungmillError

NAMED_IN_MESSAGE = 12


class FlowError(LungmillError):
    """A batch could not be made; raised where the batches are consumed.

    Attributes
    ----------
    epoch, batch : number of the epoch and of the batch in it, both from 0, as read from the data.
    indices : list of int, the elements of the batch, as indices into the data.
    index : int or None, the one element that failed, where that is known.

    The exception that was raised there is `__cause__`. The traceback of a worker process is a note of this exception,
    so it is printed with it.
    """

    epoch: int
    batch: int
    indices: list[int]
    index: int | None


def failed(doing: str, chunk, error: BaseException | None = None, *, index=None, why: str = "") -> FlowError:
    """The FlowError for `doing` (a few words), to be raised from `error`."""
    indices = [int(each) for each in chunk.indices]
    place = f"batch {chunk.number} of epoch {chunk.epoch}"
    if index is None:
        place = f"{place} (elements {_listed(indices)})"
    else:
        index = int(index)
        place = f"element {index}, in {place}"
    found = FlowError(f"{doing} failed at {place}: {why or _in_a_line(error)}")
    found.epoch, found.batch, found.indices, found.index = chunk.epoch, chunk.number, indices, index
    return found


def _listed(indices):
    words = ", ".join(map(str, indices[:NAMED_IN_MESSAGE]))
    return words if len(indices) <= NAMED_IN_MESSAGE else f"{words}, ... {len(indices)} in all"


def _in_a_line(error):
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
