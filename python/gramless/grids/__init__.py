"""What grids of layers are made of: sums over batches or whole arrays, and the pairs of layers that follow."""
