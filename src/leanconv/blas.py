"""SciPy's BLAS, reached through the C pointers that SciPy exports for Cython."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Mapping

NARROWING = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "ONEDNN_MAX_CPU_ISA",
    "DNNL_MAX_CPU_ISA",
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
)
"""Variables of the environment by which libraries are kept from using all that the CPU can do.

OpenBLAS 0.3.30 on a Zen 5, one thread, 1024 x 1024 matrices: 117 GFLOP/s with OPENBLAS_CORETYPE=Haswell, 219 without.
"""


@functools.cache
def gemm_address(dtype: str) -> int | None:
    """The address of Fortran SGEMM or DGEMM (32-bit integers), or None without SciPy."""
    try:
        from scipy.linalg import cython_blas
    except ImportError:
        return None
    capsule = cython_blas.__pyx_capi__["sgemm" if dtype == "float32" else "dgemm"]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address: int = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return address


def unnarrowed(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which libraries use all that the CPU can do."""
    return {name: value for name, value in environment.items() if name not in NARROWING}


def use_all_instructions() -> None:
    """Let libraries that this process loads from now on use all that the CPU can do."""
    for name in NARROWING:
        os.environ.pop(name, None)


def blas_threads(count: int) -> contextlib.AbstractContextManager[object]:
    """Within this block BLAS uses so many threads in the whole process (for measuring; needs threadpoolctl)."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[object] = threadpool_limits(count, user_api="blas")
    return limits
