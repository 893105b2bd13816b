"""The Zarr v3 codec "lungmill.planes": smaller and faster than pcodec, at the price that reading needs lungmill.

A volume at 1 mm of slices that lie further apart holds little news in most of its planes: each is a combination of its
neighbours, by weights that repeat with the distance of the slices. The codec fits those weights for every plane of a
chunk, and stores them and what they miss, the latter by Blosc (zstd, bitshuffle).

Installed by pip, lungmill tells zarr of it by an entry point; `register` does so where lungmill is only on the path.
"""

import asyncio
from dataclasses import dataclass

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.common import parse_named_configuration

NAME = "lungmill.planes"


def register():
    """Make the codec known to zarr in this process."""
    from zarr.registry import register_codec

    register_codec(NAME, PlaneCodec)


@dataclass(frozen=True)
class PlaneCodec(ArrayBytesCodec):
    """Chunks of three dimensions and int16; see the module."""

    level: int = 3
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data):
        _, configuration = parse_named_configuration(data, NAME, require_configuration=False)
        return cls(**(configuration or {}))

    def to_dict(self):
        return {"name": NAME, "configuration": {"level": self.level}}

    def validate(self, *, shape, dtype, chunk_grid):
        del chunk_grid
        if len(shape) != 3 or dtype.to_native_dtype() != np.int16:
            raise ValueError(f"the codec {NAME} stores int16 of three dimensions, not {dtype} of {len(shape)}")

    async def _decode_single(self, chunk_bytes, chunk_spec):
        from lungmill.plane_kernels import decode_block

        block = await asyncio.to_thread(decode_block, chunk_bytes.to_bytes(), chunk_spec.shape)
        return chunk_spec.prototype.nd_buffer.from_ndarray_like(block)

    async def _encode_single(self, chunk_array, chunk_spec):
        from lungmill.plane_kernels import encode_block

        encoded = await asyncio.to_thread(encode_block, chunk_array.as_numpy_array(), self.level)
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    def compute_encoded_size(self, input_byte_length, chunk_spec):
        raise NotImplementedError("the size of an encoded chunk depends on what is in it")
