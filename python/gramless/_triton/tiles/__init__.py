"""Pieces that all kernels share: launches, tile order, packed rows, products of features."""
