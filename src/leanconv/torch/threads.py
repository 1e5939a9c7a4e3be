"""How many threads a layer uses beside PyTorch."""

from __future__ import annotations

import torch

from leanconv.threads import chosen_num_threads, default_num_threads


def num_threads() -> int:
    """The most threads of a call made now.

    What leanconv was told (`leanconv.threads`, `leanconv.set_num_threads`); else the lesser of leanconv's default and
    `torch.get_num_threads()`, so that a DataLoader's worker, or a server that gave PyTorch one thread, gets one here.
    """
    return chosen_num_threads() or min(default_num_threads(), torch.get_num_threads())
