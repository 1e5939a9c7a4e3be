"""SciPy's BLAS, reached through the C pointers that SciPy exports for Cython."""

from __future__ import annotations

import contextlib
import ctypes
import functools


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


def blas_threads(count: int) -> contextlib.AbstractContextManager[object]:
    """Within this block BLAS uses so many threads in the whole process (for measuring; needs threadpoolctl)."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return contextlib.nullcontext()
    limits: contextlib.AbstractContextManager[object] = threadpool_limits(count, user_api="blas")
    return limits
