"""What `swap` has done, as data, and as a table when printed."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.sizes import format_bytes

_NOTED = 1 << 20  # bytes of packed weights


@dataclass(frozen=True, slots=True)
class SwappedLayer:
    """One layer that leanconv computes.

    Attributes:
        name: of the convolution's module.
        fused: what runs in one pass, such as "conv+bn+add+relu".
        problem: in one line; None if the layer has not been planned.
        algorithm: its name, or None.
        workspace_bytes: exact, or None.
        packed_weight_bytes: exact, or None.
        before_seconds: by PyTorch, all that is fused together; None if not measured.
        after_seconds: by leanconv; None if not measured.
    """

    name: str
    fused: str
    problem: str | None = None
    algorithm: str | None = None
    workspace_bytes: int | None = None
    packed_weight_bytes: int | None = None
    before_seconds: float | None = None
    after_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SwapReport:
    """What `swap` has done with a model.

    Attributes:
        layers: in the order in which they run, or if the model could not be traced in that of its modules.
        left: name -> why a convolution is still PyTorch's.
        traced: whether the model runs as a graph of fused layers in evaluation.
        reason: why it could not be traced, or None.
        memory_limit: bytes, or None.
        workspace_bytes: of all layers together, who share it; None if nothing was planned.
        packed_weight_bytes: of all layers together; None if nothing was planned.
        needed_bytes: what counts against the limit: workspace, and packed weights beyond the plain ones.
        before_seconds: of the whole model by PyTorch; None if not measured.
        after_seconds: of the whole model, swapped.
        whole: whether evaluation is one native call; None if nothing was planned.
        apart: why it is not, but layers between PyTorch's operators; None if it is.
        activation_bytes: of values between the layers that are alive at once at the worst step; None unless `whole`.
        released_bytes: of plain weights that are in a file instead of memory.
    """

    layers: tuple[SwappedLayer, ...]
    left: dict[str, str]
    traced: bool
    reason: str | None = None
    memory_limit: int | None = None
    workspace_bytes: int | None = None
    packed_weight_bytes: int | None = None
    needed_bytes: int | None = None
    before_seconds: float | None = None
    after_seconds: float | None = None
    whole: bool | None = None
    apart: str | None = None
    activation_bytes: int | None = None
    released_bytes: int = 0

    def __str__(self) -> str:
        """A table, then the totals."""
        from leanconv.planning.text import seconds_text

        titles = ("layer", "fused", "algorithm", "workspace", "packed", "before", "after")
        rows = [titles]
        for layer in self.layers:
            rows.append(
                (
                    layer.name,
                    layer.fused,
                    layer.algorithm or "-",
                    _bytes(layer.workspace_bytes),
                    _bytes(layer.packed_weight_bytes),
                    seconds_text(layer.before_seconds),
                    seconds_text(layer.after_seconds),
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(len(titles))]
        lines = []
        for row in rows:
            cells = [
                text.ljust(w) if i < 3 else text.rjust(w) for i, (text, w) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines += [f"left to PyTorch: {name}: {why}" for name, why in self.left.items()]
        if not self.traced:
            lines.append(f"not traced, so that nothing is fused or planned together: {self.reason}")
        if self.whole:
            lines.append(f"one native call; between the layers {_bytes(self.activation_bytes)}, in one arena")
        elif self.apart is not None:
            lines.append(f"layer by layer, with PyTorch's operators between: {self.apart}")
        if self.whole and not self.released_bytes and (self.packed_weight_bytes or 0) >= _NOTED:
            lines.append(
                "plain weights stay in memory beside the packed ones; release_weights=True moves them to a file"
            )
        if self.released_bytes:
            lines.append(f"plain weights in a file, not in memory: {_bytes(self.released_bytes)}")
        if self.workspace_bytes is not None and self.packed_weight_bytes is not None:
            limit = "none" if self.memory_limit is None else f"{self.memory_limit:,} bytes"
            lines.append(
                f"workspace {_bytes(self.workspace_bytes)}, shared by all layers; packed weights "
                f"{_bytes(self.packed_weight_bytes)}; against the limit {self.needed_bytes:,} bytes (limit: {limit})"
            )
        if self.before_seconds is not None and self.after_seconds is not None:
            lines.append(
                f"whole model {seconds_text(self.before_seconds)} before, {seconds_text(self.after_seconds)} after: "
                f"{self.before_seconds / self.after_seconds:.2f} times as fast"
            )
        return "\n".join(lines)


def _bytes(nbytes: int | None) -> str:
    return "-" if nbytes is None else format_bytes(nbytes)
