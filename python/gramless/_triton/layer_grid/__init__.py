"""A grid of layers from batches, kept on the GPU."""
