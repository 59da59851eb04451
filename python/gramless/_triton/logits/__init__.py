"""Logits in chunks, and sums over the labels of a row."""
