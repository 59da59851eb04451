"""Kernel values of tiles for `gram_sums`."""
