"""leanconv for PyTorch: functions, modules, and whole models swapped; forward and backward on the CPU.

Needs the extra `leanconv[torch]`.
"""

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("leanconv.torch needs PyTorch: pip install 'leanconv[torch]'", name="torch") from error

from leanconv.torch.functional import conv1d, conv2d, conv3d
from leanconv.torch.modules import Conv1d, Conv2d, Conv3d

__all__ = ["Conv1d", "Conv2d", "Conv3d", "conv1d", "conv2d", "conv3d"]
