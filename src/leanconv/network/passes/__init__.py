"""Passes: each changes a graph in place into one that computes the same in less time or memory.

They run in the order of `PASSES`.
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping

import numpy as np

from leanconv.network.constants import Constant
from leanconv.network.graph import Graph
from leanconv.network.passes.activations import fuse_activations
from leanconv.network.passes.affine import split_norms
from leanconv.network.passes.base import Pass, Rewriter
from leanconv.network.passes.chains import join_chains
from leanconv.network.passes.composites import join_composites
from leanconv.network.passes.folding import fold_constants
from leanconv.network.passes.identities import remove_identities
from leanconv.network.passes.linear import use_gemm, use_global_pool
from leanconv.network.passes.norms import fuse_norm_activations, join_norms
from leanconv.network.passes.pads import fold_pads
from leanconv.network.passes.residuals import fuse_residuals
from leanconv.network.passes.scales import fold_scales

PASSES: tuple[Pass, ...] = (
    fold_constants,
    remove_identities,
    fold_pads,
    # Before factors and summands go into weights: some of them are parts of an activation.
    join_composites,
    join_norms,
    fold_scales,
    split_norms,
    use_global_pool,
    use_gemm,
    # Activations first: a convolution with one takes a residual after it.  Then those that follow a residual.
    fuse_activations,
    fuse_residuals,
    fuse_activations,
    fuse_norm_activations,
    join_chains,
)


def run_passes(
    graph: Graph,
    passes: tuple[Pass, ...] = PASSES,
    derived: MutableMapping[str, Constant] | None = None,
    shared: Collection[str] = (),
) -> None:
    """Run passes one after the other.

    Args:
        graph: changed in place.
        passes: which; all of them, in their order, if not given.
        derived: constants made of others, by a name that says how; a pass takes from it what is there and adds what is
            not, so that the graphs of one model share them.
        shared: names of constants that all graphs of the model have.
    """
    rewriter = Rewriter(graph, {} if derived is None else derived, shared)
    # Arithmetic on strange weights never warns, as it does not when the operators compute.
    with np.errstate(all="ignore"):
        for each in passes:
            each(rewriter)
            rewriter.sweep()


__all__ = ["PASSES", "Pass", "Rewriter", "run_passes"]
