"""Generated kernels that the algorithms share; they know layers and memory, but no algorithm."""
