"""Similarity of all pairs of layers of two models."""
