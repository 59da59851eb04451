"""Kernels for the GPU, one file for each stem; loaded when tensors on a GPU, or backend="cuda", ask for them."""
