"""Activations, hidden states and unembeddings on disk: formats, folders, checkpoints, comparisons."""
