"""Runtimes that run whole networks, each at its best settings for float32 on a CPU.

Those that read ONNX files get the file. For others it is converted beforehand by the tool that their makers give for
that; PyTorch's compiler, and LiteRT, whose converter reads PyTorch's modules, get the network of `bench/models.py` that
has the file's name, with the weights that it was exported with. Outputs tell whether it is the same network.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from leanconv.arrays import Array
from leanconv.errors import LeanconvError

Inputs: TypeAlias = Mapping[str, Array]
Run: TypeAlias = Callable[[Inputs], list[Array]]


class NoRuntimeError(LeanconvError):
    """A runtime cannot take part; says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a runtime is to run.

    Attributes:
        path: of the ONNX file, or of what it was converted to.
        inputs: an array for each input.
        outputs: names of the outputs, in order.
        threads: that it may use.
        limit: of memory, which only leanconv keeps to.
    """

    path: str
    inputs: Inputs
    outputs: tuple[str, ...]
    threads: int
    limit: str | None = None


@dataclass(frozen=True, slots=True)
class Runtime:
    """A runtime.

    Attributes:
        module: imported before memory is measured.
        start: loads a model.
        convert: makes the file that it reads from the ONNX file, in a given folder, or fills the cache on disk of a
            compiler; neither time nor memory of it is counted. None if it needs neither.
        needs: further modules, of the converter.
        each_threads: whether what is made is for one number of threads.
    """

    module: str
    start: Callable[[Request], Run]
    convert: Callable[[Request, Path], str] | None = None
    needs: tuple[str, ...] = ()
    each_threads: bool = False

    @property
    def missing(self) -> str:
        """What is not installed, or ""."""
        for name in (self.module, *self.needs):
            if importlib.util.find_spec(name.partition(".")[0]) is None:
                return "not installed" if name == self.module else f"its converter {name} is not installed"
        return ""


def _leanconv(request: Request) -> Run:
    from leanconv.onnx import load

    session = load(request.path, threads=request.threads, memory_limit=request.limit)
    return lambda inputs: list(session.run(inputs).values())


def _onnxruntime(request: Request) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = request.threads, 1
    session = onnxruntime.InferenceSession(request.path, options, providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(None, dict(inputs)))


def _openvino(request: Request) -> Run:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": request.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    infer = openvino.Core().compile_model(request.path, "CPU", settings).create_infer_request()
    return lambda inputs: list(infer.infer(dict(inputs), share_outputs=True).values())


def _to_mnn(request: Request, folder: Path) -> str:
    # The package MNN.tools around the converter installs a logging client with pip when it is imported.
    import _tools

    target = folder / "model.mnn"
    _tools.mnnconvert(
        ["mnnconvert", "-f", "ONNX", "--modelFile", request.path, "--MNNModel", str(target), "--bizCode", "leanconv"]
    )
    return _made(target, "MNN's converter")


def _mnn(request: Request) -> Run:
    import MNN.expr
    import MNN.nn

    settings = {"backend": "CPU", "precision": "high", "memory": "high", "power": "high", "numThread": request.threads}
    manager = MNN.nn.create_runtime_manager((settings,))
    names = list(request.inputs)
    module = MNN.nn.load_module_from_file(
        request.path, names, list(request.outputs), runtime_manager=manager, shape_mutable=False, rearrange=True
    )

    def run(inputs: Inputs, _keep: Any = manager) -> list[Array]:
        images = [MNN.expr.const(inputs[name], list(inputs[name].shape), MNN.expr.NCHW) for name in names]
        return [np.array(MNN.expr.convert(y, MNN.expr.NCHW).read()) for y in module.forward(images)]

    return run


def _to_ncnn(request: Request, folder: Path) -> str:
    import pnnx

    # It writes beside what it reads.
    source = folder / "model.onnx"
    source.symlink_to(Path(request.path).absolute())
    shapes = ",".join(f"[{','.join(map(str, array.shape))}]f32" for array in request.inputs.values())
    tool = Path(pnnx.__file__).parent / "pnnx"
    done = subprocess.run(
        [str(tool), source.name, f"inputshape={shapes}", "fp16=0"], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        raise NoRuntimeError(f"pnnx ends with {done.returncode}: {done.stderr[-200:]}")
    _made(folder / "model.ncnn.bin", "pnnx")
    return _made(folder / "model.ncnn.param", "pnnx")


def _ncnn(request: Request) -> Run:
    import ncnn

    if any(array.ndim != 4 or array.shape[0] != 1 for array in request.inputs.values()):
        raise NoRuntimeError("ncnn takes one image at a time")
    net = ncnn.Net()
    net.opt.num_threads = request.threads
    net.opt.use_vulkan_compute = False
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "int8_inference"):
        setattr(net.opt, f"use_{name}", False)
    for load, path in ((net.load_param, request.path), (net.load_model, request.path[: -len("param")] + "bin")):
        if load(path) != 0:
            raise NoRuntimeError(f"ncnn does not load {Path(path).name}")

    def run(inputs: Inputs) -> list[Array]:
        extractor = net.create_extractor()
        for number, array in enumerate(inputs.values()):
            extractor.input(f"in{number}", ncnn.Mat(array[0]))
        results = []
        for number in range(len(request.outputs)):
            code, out = extractor.extract(f"out{number}")
            if code != 0:
                raise NoRuntimeError(f"ncnn's extract returns {code}")
            results.append(np.array(out)[None])
        return results

    return run


def _own_model(request: Request) -> Any:
    """The network of `bench/models.py` that was exported to the file, and its image."""
    import torch

    from leanconv.bench.models import MODELS, make_model

    name = Path(request.path).stem
    if name not in MODELS or len(request.inputs) != 1:
        raise NoRuntimeError(f"it reads no ONNX, and no network of leanconv's own definitions is called {name!r}")
    torch.set_num_threads(request.threads)
    (image,) = request.inputs.values()
    return make_model(name), torch.from_numpy(image)


def _torch_compile(request: Request) -> Run:
    import torch
    import torch._inductor.config as inductor

    model, image = _own_model(request)
    inductor.freezing = True
    model = torch.compile(model.to(memory_format=torch.channels_last))

    def run(inputs: Inputs) -> list[Array]:
        (array,) = inputs.values()
        with torch.no_grad():
            found = model(torch.from_numpy(array))
        return [each.numpy() for each in (found if isinstance(found, tuple | list) else (found,))]

    run({"x": image.numpy()})  # compiled now, not within somebody's turn
    return run


def _compiled(request: Request, folder: Path) -> str:
    """Fill leanconv's cache of kernels on disk, as its first process does."""
    _leanconv(request)(request.inputs)
    return request.path


def _warm(request: Request, folder: Path) -> str:
    """Fill the compiler's cache on disk."""
    _torch_compile(request)
    return request.path


def _to_litert(request: Request, folder: Path) -> str:
    import litert_torch

    model, image = _own_model(request)
    target = folder / "model.tflite"
    litert_torch.convert(model.eval(), (image,)).export(str(target))
    return _made(target, "litert-torch")


def _litert(request: Request) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=request.path, num_threads=request.threads)
    interpreter.allocate_tensors()
    sources, targets = interpreter.get_input_details(), interpreter.get_output_details()

    def run(inputs: Inputs) -> list[Array]:
        for source, array in zip(sources, inputs.values(), strict=True):
            interpreter.set_tensor(source["index"], array)
        interpreter.invoke()
        return [interpreter.get_tensor(target["index"]) for target in targets]

    return run


def _made(path: Path, tool: str) -> str:
    if not path.is_file():
        raise NoRuntimeError(f"{tool} does not convert the model")
    return str(path)


OURS = "leanconv"
RUNTIMES = {
    OURS: Runtime("leanconv.onnx.session", _leanconv, _compiled, each_threads=True),
    "onnxruntime": Runtime("onnxruntime", _onnxruntime),
    "openvino": Runtime("openvino", _openvino),
    "mnn": Runtime("MNN.nn", _mnn, _to_mnn),
    "ncnn": Runtime("ncnn", _ncnn, _to_ncnn, ("pnnx",)),
    "litert": Runtime("ai_edge_litert.interpreter", _litert, _to_litert, ("torch", "litert_torch")),
    "torch_compile": Runtime("torch", _torch_compile, _warm, each_threads=True),
}


def silenced() -> None:
    """Converters and compilers write much: all but Python's own messages goes nowhere."""
    import os

    sys.stdout.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
