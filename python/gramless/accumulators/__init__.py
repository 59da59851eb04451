"""Accumulators: feed batches to a kernel and add up the states. Batches may come in any size and order."""
