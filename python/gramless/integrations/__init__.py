"""Gramless at the edges: arrays on disk, the command line, plots and the demonstration."""
