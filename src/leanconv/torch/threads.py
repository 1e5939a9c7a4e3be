"""How many threads a layer uses beside PyTorch."""

from __future__ import annotations

from pathlib import Path

import torch

from leanconv.checks import flag
from leanconv.team import TeamPool, loaded_runtime
from leanconv.threads import chosen_num_threads, default_num_threads, use_pool


def num_threads() -> int:
    """The most threads of a call made now.

    What leanconv was told (`leanconv.threads`, `leanconv.set_num_threads`); else the lesser of leanconv's default and
    `torch.get_num_threads()`, so that a DataLoader's worker, or a server that gave PyTorch one thread, gets one here.
    """
    return chosen_num_threads() or min(default_num_threads(), torch.get_num_threads())


def share_threads(share: bool = True) -> None:
    """Run leanconv on PyTorch's own threads from now on, or on its own again.

    The two pools hinder each other where layers of both alternate on more than one thread. Concerns the whole process;
    a forked child has a pool of its own again, since OpenMP's threads do not survive a fork.

    Args:
        share: whether to.

    Raises:
        ArgumentTypeError: not a bool.
        NoOpenMPError: PyTorch does not run on GNU's OpenMP runtime here.
    """
    if flag("share", share):
        use_pool(TeamPool(loaded_runtime(Path(torch.__file__).parent)))
    else:
        use_pool(None)
