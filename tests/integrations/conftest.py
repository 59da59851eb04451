"""Activations of two small models on disk."""

import numpy as np
import pytest

ROWS = 500


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, 6))
    np.savez(tmp_path / "a.npz", first=x, second=np.tanh(x @ rng.standard_normal((6, 4))))
    np.savez(tmp_path / "b.npz", one=x[:, :2], two=x + rng.standard_normal((ROWS, 6)), three=x**2)
    return str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
