"""Let a convolution pad its image itself, where a Pad before it adds to the spatial axes only."""

from __future__ import annotations

from leanconv.network.graph import Node
from leanconv.network.operators.base import ints
from leanconv.network.operators.convolution import conv_windows
from leanconv.network.operators.slicing import pad_mode, pad_widths
from leanconv.network.passes.activations import FUSED
from leanconv.network.passes.base import Rewriter, input_of, with_inputs, without

_MODES = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def fold_pads(rewriter: Rewriter) -> None:
    """Fold each Pad all of whose readers are convolutions that can take it."""
    for pad in rewriter.nodes():
        if pad.op != "Pad" or pad.outputs[0] in rewriter.graph.outputs:
            continue
        users = rewriter.users(pad.outputs[0])
        widths = _widths(rewriter, pad)
        if widths is None or not users:
            continue
        folded = [_folded(rewriter, pad, user, widths) for user in users]
        for user, new in zip(users, folded, strict=True):
            if new is not None:
                rewriter.replace(user, new)
        if all(new is not None for new in folded):
            rewriter.remove(pad)


def _widths(rewriter: Rewriter, pad: Node) -> list[tuple[int, int]] | None:
    """Widths along the spatial axes; None if it pads others, cuts, or fills with another number than zero."""
    x = rewriter.type_of(pad.inputs[0])
    pads, axes = rewriter.constant(input_of(pad, 1)), rewriter.constant(input_of(pad, 3))
    known = all(rewriter.is_constant(name) for name in pad.inputs[1:] if name)
    if not known or not 3 <= len(x.shape) <= 5:
        return None
    widths = pad_widths(pad, len(x.shape), None if pads is None else ints(pads), None if axes is None else ints(axes))
    if any(widths[0]) or any(widths[1]) or any(a < 0 or b < 0 for a, b in widths):
        return None
    if pad_mode(pad) == "constant":
        fill = rewriter.number(input_of(pad, 2)) if input_of(pad, 2) else pad.attributes.get("value", 0)
        return widths[2:] if fill == 0 else None
    # A mirror reaches at most as far as the image.
    edge = 1 if pad_mode(pad) == "reflect" else 0
    fits = all(max(width) <= n - edge for width, n in zip(widths[2:], x.shape[2:], strict=True))
    return widths[2:] if fits or pad_mode(pad) == "edge" else None


def _folded(rewriter: Rewriter, pad: Node, conv: Node, widths: list[tuple[int, int]]) -> Node | None:
    if conv.op not in ("Conv", "leanconv.Conv") or pad.outputs[0] in conv.inputs[1:]:
        return None
    x, w = rewriter.type_of(conv.inputs[0]), rewriter.type_of(conv.inputs[1])
    place = conv_windows(conv, x.shape, w.shape)
    mode = _MODES[pad_mode(pad)]
    own = any(place.low) or any(place.high)
    # Two kinds of padding at once are not one: mirrored pixels inside of zeros.
    if own and (mode != "zeros" or conv.attributes.get("pad_mode", "zeros") != "zeros"):
        return None
    low = [a + b for a, (b, _) in zip(place.low, widths, strict=True)]
    high = [a + b for a, (_, b) in zip(place.high, widths, strict=True)]
    inputs = (pad.inputs[0], *conv.inputs[1:])
    new = with_inputs(conv, inputs, pads=(*low, *high), **({} if mode == "zeros" else {"pad_mode": mode}))
    op = conv.op if mode == "zeros" else FUSED[conv.op]
    return Node(op, new.name, new.inputs, new.outputs, without(new.attributes, "auto_pad"), new.version)
