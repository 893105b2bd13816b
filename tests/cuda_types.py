"""Take the CUDA kernels through numba's compiler up to NVIDIA's, which needs neither a GPU nor the CUDA toolkit.

Prints a line for each: name, number of multiplications of doubles. It stands in for the two things that numba asks of
the machine on that way: the data layout and version of NVIDIA's compiler, and the GPU's compute capability.
"""

import sys

from numba import cuda, types

if cuda.implementation != "Built-in":
    sys.exit(print("the CUDA target is not numba's own"))

import numba.cuda.dispatcher
from numba.cuda.compiler import compile_cuda
from numba.cuda.cudadrv import nvvm

from lungmill import resampling_cuda_kernels as kernels

CAPABILITY = (7, 5)


class Compiler:
    data_layout = nvvm._datalayout_i128

    def get_ir_version(self):
        return 2, 0, 3, 1


class Device:
    compute_capability = CAPABILITY


nvvm.NVVM = Compiler
numba.cuda.dispatcher.get_current_device = Device

HU, INDEX, VALUE, PLACE = types.int16, types.int32, types.float32, types.float64
number = types.int64


def array(dtype, dimensions):
    return types.Array(dtype, dimensions, "C")


FACTORS = [array(VALUE, 1)] * 3
TABLES = [array(INDEX, 2), array(VALUE, 2)]
LATTICE = [array(PLACE, 1), array(PLACE, 2)]
PLACES = [array(PLACE, 2)] * 3
SIGNATURES = {
    "widen": [array(HU, 3), array(VALUE, 3)],
    "solve_columns": [array(VALUE, 3), *FACTORS],
    "solve_rows": [array(VALUE, 3), *FACTORS],
    "in_plane": [array(HU, 3), *TABLES, *TABLES, array(VALUE, 3)],
    "in_plane of coefficients": [array(VALUE, 3), *TABLES, *TABLES, array(VALUE, 3)],
    "blend": [array(VALUE, 3), *TABLES, number, array(HU, 3)],
    "oblique_linear": [array(HU, 3), number, *LATTICE, *PLACES, array(HU, 3)],
    "oblique_cubic": [array(VALUE, 3), number, *LATTICE, array(VALUE, 3), *PLACES, array(HU, 3)],
}
for name, signature in SIGNATURES.items():
    kernel = getattr(kernels, name.split()[0])
    compiled = compile_cuda(kernel.py_func, types.void, tuple(signature), cc=CAPABILITY, nvvm_options={})
    print(f"{name}:{sum(str(module).count('fmul double') for module in compiled.library.modules)}")
