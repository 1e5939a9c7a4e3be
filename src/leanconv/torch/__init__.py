"""leanconv for PyTorch: functions, modules, and whole models swapped; forward and backward on the CPU.

Needs the extra `leanconv[torch]`.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("leanconv.torch needs PyTorch: pip install 'leanconv[torch]'", name="torch") from error

from leanconv.torch.compile import backend
from leanconv.torch.functional import conv1d, conv2d, conv3d
from leanconv.torch.modules import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from leanconv.torch.network import ChangedModelError
from leanconv.torch.patch import patch
from leanconv.torch.report import SwappedLayer, SwapReport
from leanconv.torch.swap import is_swapped, swap, unswap
from leanconv.torch.transposed import conv_transpose1d, conv_transpose2d, conv_transpose3d

__all__ = [
    "ChangedModelError",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "SwapReport",
    "SwappedLayer",
    "backend",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "is_swapped",
    "patch",
    "swap",
    "unswap",
]
