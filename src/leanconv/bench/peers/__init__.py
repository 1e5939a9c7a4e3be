"""Peers: other libraries that compute convolutions, measured beside ours.

Each is optional, has one small module here, and runs in a process of its own (`worker`), so that neither its
threads nor its memory nor a crash of it reaches us. This module knows them by name without importing any.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Sequence
from dataclasses import dataclass

from leanconv.errors import LeanconvError

ALL = "all"


class PeerError(LeanconvError, RuntimeError):
    """A peer does not exist, or its process failed; the message says what happened."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """What is known of a peer before it runs.

    Attributes:
        name: what users write, and `Row.algorithm`.
        title: a few words.
        distribution: the installed package that has its version.
        requirements: what pip is asked to install.
        layout: axis order of its arrays, "NCHW" or "NHWC".
        module: Python module with a class `Worker` derived from `leanconv.bench.peers.base.Peer`.
    """

    name: str
    title: str
    distribution: str
    requirements: tuple[str, ...]
    layout: str
    module: str

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        return _version(self.distribution)

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of the requirements whose package is not installed, in whatever version."""
        return tuple(need for need in self.requirements if _version(re.split("[<>=!~]", need)[0]) is None)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _peer(name: str, title: str, distribution: str, requirements: str, layout: str, module: str) -> PeerInfo:
    return PeerInfo(name, title, distribution, tuple(requirements.split()), layout, f"{__name__}.{module}")


# The requirements are those of the extra `peers` in pyproject.toml.
PEERS: tuple[PeerInfo, ...] = (
    _peer("torch", "PyTorch, channels first", "torch", "torch==2.13.0", "NCHW", "torch_nchw"),
    _peer("torch_channels_last", "PyTorch, channels last", "torch", "torch==2.13.0", "NHWC", "torch_channels_last"),
    _peer("onednn", "oneDNN with packed weights, through PyTorch", "torch", "torch==2.13.0", "NHWC", "torch_onednn"),
    _peer("torch_im2col", "PyTorch without oneDNN: im2col and BLAS", "torch", "torch==2.13.0", "NCHW", "torch_im2col"),
    _peer("onnxruntime", "ONNX Runtime", "onnxruntime", "onnxruntime>=1.22 onnx>=1.17", "NCHW", "onnx_runtime"),
    _peer("openvino", "OpenVINO", "openvino", "openvino>=2025.0", "NCHW", "open_vino"),
    _peer("litert", "LiteRT with XNNPACK", "ai-edge-litert", "ai-edge-litert>=2.0 flatbuffers>=24", "NHWC", "lite_rt"),
    _peer("ncnn", "ncnn", "ncnn", "ncnn>=1.0.20250503", "NCHW", "ncnn_net"),
    _peer("mnn", "MNN", "mnn", "mnn>=3.1", "NCHW", "mnn_module"),
    _peer("jax", "JAX, compiled by XLA", "jax", "jax>=0.6", "NHWC", "jax_jit"),
    _peer("scipy", "SciPy's correlate, filter by filter", "scipy", "scipy>=1.11", "NCHW", "scipy_correlate"),
)


def named(words: Sequence[str], known: Sequence[PeerInfo] = PEERS) -> list[PeerInfo]:
    """Return the peers with these names, each once; "all" stands for every one.

    Raises:
        PeerError: no peer has such a name; the message lists them.
    """
    by_name = {info.name: info for info in known}
    chosen: dict[str, PeerInfo] = {}
    for word in words:
        if word == ALL:
            chosen |= {info.name: info for info in known if info.name not in chosen}
        elif word in by_name:
            chosen[word] = by_name[word]
        else:
            near = difflib.get_close_matches(word, [*by_name, ALL], n=2)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise PeerError(f"no peer is called {word!r}; {hint}there are {', '.join([ALL, *by_name])}")
    return list(chosen.values())
