"""ONNX's backend interface, which its conformance tests run against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx.backend.base import Backend as BackendBase
from onnx.backend.base import BackendRep, namedtupledict

from leanconv.arrays import Array
from leanconv.errors import ArgumentValueError, UnsupportedModelError
from leanconv.onnx.session import Session, load


class Prepared(BackendRep):  # type: ignore[misc, unused-ignore]  # untyped where onnx is missing
    """A loaded model, called with its inputs in order."""

    def __init__(self, session: Session) -> None:
        """`session`: the model."""
        self.session = session

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Array, ...]:
        """Outputs in order, as a tuple that has their names too.

        Args:
            inputs: an array for each input, in the order of the model's; or a mapping by name; or one array.
            **kwargs: none is known.

        Raises:
            ArgumentValueError: another number of inputs.
            LeanconvError: as `Session.run`.
        """
        ports = self.session.inputs
        if isinstance(inputs, np.ndarray):
            inputs = [inputs]
        if not isinstance(inputs, dict):
            if len(inputs) != len(ports):
                rule = f"must have {len(ports)} entries: {', '.join(map(str, ports))}"
                raise ArgumentValueError("inputs", f"{len(inputs)} arrays", rule)
            inputs = {port.name: np.asarray(array) for port, array in zip(ports, inputs, strict=True)}
        found = self.session.run(inputs)
        names = [port.name for port in self.session.outputs]
        outputs: tuple[Array, ...] = namedtupledict("Outputs", names)(*(found[name] for name in names))
        return outputs


class Backend(BackendBase):  # type: ignore[misc, unused-ignore]  # untyped where onnx is missing
    """ONNX models on the CPU."""

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether a device is the CPU."""
        return str(device).split(":")[0] == "CPU"

    @classmethod
    def is_compatible(cls, model: Any, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether a model holds nothing that is not supported."""
        try:
            cls.prepare(model, device, **kwargs)
        except UnsupportedModelError:
            return False
        return True

    @classmethod
    def prepare(cls, model: Any, device: str = "CPU", **kwargs: Any) -> Prepared:
        """Load a model.

        Args:
            model: an `onnx.ModelProto`.
            device: "CPU".
            **kwargs: as for `leanconv.onnx.load`.

        Raises:
            ArgumentValueError: another device.
            LeanconvError: as `leanconv.onnx.load`.
        """
        if not cls.supports_device(device):
            raise ArgumentValueError("device", device, "must be 'CPU'")
        return Prepared(load(model, **kwargs))

    @classmethod
    def run_model(cls, model: Any, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Array, ...]:
        """Load a model and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: Any,
        inputs: Sequence[Array],
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Array, ...]:
        """Run one node on arrays, one for each of its inputs that is not `""`.

        Args:
            node: an `onnx.NodeProto`.
            inputs: arrays.
            device: "CPU".
            outputs_info: ignored; types are inferred.
            **kwargs: `opset_version` of ONNX's operator set, the newest if missing; others as for `load`.
        """
        versions = kwargs.pop("opset_version", None)
        names = [name for name in dict.fromkeys(node.input) if name]
        infos = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, map(np.asarray, inputs), strict=True)
        ]
        outputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in node.output if name]
        graph = helper.make_graph([node], "node", infos, outputs)
        opsets = None if versions is None else [helper.make_opsetid("", versions)]
        model = helper.make_model(graph, opset_imports=opsets)
        return cls.run_model(model, dict(zip(names, map(np.asarray, inputs), strict=True)), device, **kwargs)
