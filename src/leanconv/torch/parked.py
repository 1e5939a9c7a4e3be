"""A model's weights in a file instead of memory: read from there when somebody looks, changed in memory as ever.

Packed weights are what a swapped model runs with; the plain ones are needed while they are packed, for `state_dict`,
for training. Here their storages become private mappings of a file without a name, whose pages the system drops once
they have been read and reads again when they are touched. A page that is written is the process's own from then on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.allocation import trim_heap
from leanconv.arrays import Array
from leanconv.errors import AllocationError, ArgumentValueError
from leanconv.network.constants import Constant
from leanconv.torch.tensors import as_array, numpy_dtype

SMALLEST = 64 << 10  # bytes of a storage that is worth a file
BEHIND = 0.01  # seconds between two times that pages are given back while weights are read
_PAGE = 4096
_NORMAL, _RANDOM, _PAGEOUT = 0, 1, 21  # as of Linux's madvise


class Parked:
    """The large storages of a model's parameters and buffers, in a file."""

    def __init__(self, model: nn.Module, folder: str) -> None:
        """Move them; tensors that share memory share it still.

        Raises:
            ArgumentValueError: the system cannot give back pages of files.
            AllocationError: the file cannot be written. The model is as before.
        """
        libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
        self._madvise: Any = getattr(libc, "madvise", None)
        if self._madvise is None:
            raise ArgumentValueError(
                "release_weights", True, "needs a system with memory mapped files that it can drop"
            )
        tensors: dict[int, list[Tensor]] = {}
        for tensor in (*model.parameters(), *model.buffers()):
            plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_inference()
            if plain and tensor.untyped_storage().nbytes() >= SMALLEST:
                tensors.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        self.tensors = [tensor for group in tensors.values() for tensor in group]
        sizes = [group[0].untyped_storage().nbytes() for group in tensors.values()]
        starts = [0]
        for size in sizes:
            starts.append(starts[-1] + -(-size // _PAGE) * _PAGE)
        self.nbytes = sum(sizes)
        if not sizes:
            return
        whole = _mapped(list(tensors.values()), starts, folder)
        self._start, self._span = whole.data_ptr(), starts[-1]
        with torch.no_grad():
            for first, group in zip(starts, tensors.values(), strict=False):
                for tensor in group:
                    at = first // tensor.element_size() + tensor.storage_offset()
                    view = torch.empty(0, dtype=tensor.dtype).set_(whole, at, tensor.shape, tensor.stride())
                    tensor.data = view
        del tensors
        trim_heap()
        self.rest()

    def __contains__(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in the file."""
        return bool(self.nbytes) and self._start <= tensor.data_ptr() < self._start + self._span

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """While weights are read from end to end; afterwards their pages are given back."""
        if not self.nbytes:
            yield
            return
        self._advise(_NORMAL)
        done = threading.Event()

        def follow() -> None:  # a single layer may be most of the model
            while not done.wait(BEHIND):
                self._advise(_PAGEOUT)

        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        try:
            yield
        finally:
            done.set()
            follower.join()
            self.rest()
            trim_heap()

    def _advise(self, what: int) -> None:
        self._madvise(ctypes.c_void_p(self._start), ctypes.c_size_t(self._span), what)

    def rest(self) -> None:
        """Give the pages back that have been read; those that were changed stay."""
        if self.nbytes:
            self._advise(_PAGEOUT)
            # Single elements are looked at now and then: they are not to bring their neighbours with them.
            self._advise(_RANDOM)

    def constant(self, tensor: Tensor) -> Constant:
        """A tensor as a constant of a network, whose pages are given back when nobody looks any more."""
        start = tensor.data_ptr() // _PAGE * _PAGE
        span = tensor.data_ptr() + tensor.numel() * tensor.element_size() - start
        return _Weights(tensor, lambda: self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(span), _PAGEOUT))

    def restore(self) -> None:
        """Bring all that is still in the file back to memory."""
        with torch.no_grad():
            for tensor in self.tensors:
                if tensor in self:
                    tensor.data = tensor.data.clone(memory_format=torch.preserve_format)


class _Weights(Constant):
    __slots__ = ("_drop", "_seen", "_tensor")

    def __init__(self, tensor: Tensor, drop: Callable[[], object]) -> None:
        super().__init__(tuple(tensor.shape), numpy_dtype(tensor))
        self._tensor, self._drop = tensor, drop
        self._seen: weakref.ref[Array] | None = None

    def array(self) -> Array:
        """The elements where they lie; never to be written there."""
        found = None if self._seen is None else self._seen()
        if found is None:
            found = as_array(self._tensor)
            found.flags.writeable = False
            weakref.finalize(found, self._drop).atexit = False
            self._seen = weakref.ref(found)
        return found


def _mapped(groups: list[list[Tensor]], starts: list[int], folder: str) -> torch.UntypedStorage:
    """A private mapping of a file that holds the storages, and has no name any more."""
    path = None
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix="leanconv-", delete=False) as file:
            path = file.name
            for first, group in zip(starts, groups, strict=False):
                storage = group[0].untyped_storage()
                file.seek(first)
                file.write((ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr()))
            file.truncate(starts[-1])
            file.flush()
            os.fsync(file.fileno())  # pages that are not on the disk yet could not be dropped
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return torch.UntypedStorage.from_file(path, False, starts[-1])
    except (OSError, RuntimeError) as error:
        raise AllocationError(
            f"the weights' {starts[-1]} bytes cannot be moved to a file in {folder!r}: {error}"
        ) from error
    finally:
        if path is not None:
            with contextlib.suppress(OSError):
                os.unlink(path)
