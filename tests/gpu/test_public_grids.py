"""Layer grids of tensors on a GPU through the public classes: values, rows of both places, saving, faults."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch

import gramless as gl
from gramless._base import arguments
from support import bounds, device

BACKEND = "auto" if device.label() == "cuda" else "cuda"
WIDTHS = {"a": 8, "b": 20}


@pytest.fixture(scope="module")
def layers() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    xs = {name: rng.standard_normal((64, width)) for name, width in WIDTHS.items()}
    return xs, {"c": xs["a"] @ rng.standard_normal((8, 5)) + rng.standard_normal((64, 5))}


def part(layers: Any, start: int, stop: int, *, on_gpu: bool = False) -> list[dict[str, Any]]:
    rows = [{name: x[start:stop] for name, x in side.items()} for side in layers]
    return [{name: device.tensor(x) for name, x in side.items()} for side in rows] if on_gpu else rows


def grid(**keywords: Any) -> gl.LayerGrid:
    return gl.LayerGrid("minibatch", precision="exact", **keywords)


CUTS = ((0, 20), (20, 40), (40, 41), (41, 64))


@pytest.mark.parametrize("weights", ["rows", "equal"])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_is_that_of_the_host(layers: Any, kernel: str, weights: str) -> None:
    host, gpu = (grid(kernel=kernel, weights=weights, backend=backend) for backend in ("cpu", BACKEND))
    for start, stop in CUTS:
        host.update(*part(layers, start, stop))
        gpu.update(*part(layers, start, stop, on_gpu=True))
    want, got = host.finalize(), gpu.finalize()
    assert gpu.n == host.n == 64
    assert got.layers_x == want.layers_x
    assert np.abs(got.values - want.values).max() <= bounds.SAME_FP64
    assert np.abs(got.stderr - want.stderr).max() <= bounds.SAME_FP64


def test_rows_of_both_places(layers: Any) -> None:
    """Rows of the host go on where those of a GPU were, and the other way round."""
    want = grid(backend="cpu").update(*part(layers, 0, 20)).update(*part(layers, 20, 64)).finalize()
    first = grid().update(*part(layers, 0, 20))
    first._grid._backend = BACKEND
    first.update(*part(layers, 20, 64, on_gpu=True))
    assert np.abs(first.finalize().values - want.values).max() <= bounds.SAME_FP64
    second = grid(backend=BACKEND).update(*part(layers, 0, 20, on_gpu=True))
    second._grid._backend = "auto"
    second.update(*part(layers, 20, 64))
    assert np.abs(second.finalize().values - want.values).max() <= bounds.SAME_FP64


def test_save_load_and_merge(layers: Any) -> None:
    want = grid(backend="cpu").update(*part(layers, 0, 30)).update(*part(layers, 30, 64)).finalize()
    first = grid(backend=BACKEND).update(*part(layers, 0, 30, on_gpu=True))
    restored = grid(backend=BACKEND)
    restored.load_state_dict(first.state_dict())
    restored.update(*part(layers, 30, 64, on_gpu=True))
    assert np.abs(restored.finalize().values - want.values).max() <= bounds.SAME_FP64
    other = grid(backend=BACKEND).update(*part(layers, 30, 64, on_gpu=True))
    merged = first.merge(other)
    assert merged.n == 64
    assert np.abs(merged.finalize().values - want.values).max() <= bounds.SAME_FP64
    # and with one of the host
    mixed = grid(backend="cpu").update(*part(layers, 0, 30)).merge(other)
    assert np.abs(mixed.finalize().values - want.values).max() <= bounds.SAME_FP64


def test_reset_keeps_the_buffers(layers: Any) -> None:
    stream = grid(backend=BACKEND).update(*part(layers, 0, 30, on_gpu=True))
    place = stream._grid._on_gpu._grid.state.data_ptr()
    stream.reset()
    assert stream.n == 0
    with pytest.raises(ValueError, match="no rows yet"):
        stream.finalize()
    stream.update(*part(layers, 0, 30, on_gpu=True))
    assert stream._grid._on_gpu._grid.state.data_ptr() == place
    assert stream.n == 30


def test_faults_are_told_when_it_is_read(layers: Any) -> None:
    stream = grid(backend=BACKEND).update(*part(layers, 0, 30, on_gpu=True))
    xs, ys = part(layers, 30, 64, on_gpu=True)
    xs["b"][3, 2] = float("nan")
    stream.update(xs, ys)
    for read, name in ((stream.finalize, "finalize"), (stream.state_dict, "state_dict")):
        with pytest.raises(ValueError, match=rf"LayerGrid\.{name}: batch 2: layer x/b: has non-finite values.* row 3"):
            read()
    assert "n=64" in repr(stream)
    stream.reset()
    assert stream.update(*part(layers, 0, 30, on_gpu=True)).finalize().n == 30


def test_dead_layers(layers: Any) -> None:
    xs, ys = part(layers, 0, 30, on_gpu=True)
    xs["b"] = torch.full_like(xs["b"], 3.0)
    with pytest.warns(RuntimeWarning, match="layer x/b is constant"):
        matrix = grid(backend=BACKEND).update(xs, ys).finalize()
    assert np.isnan(matrix.values).tolist() == [[False], [True]]


def test_matrix(layers: Any) -> None:
    xs, ys = part(layers, 0, 64, on_gpu=True)
    for keywords in ({"batch_size": 20}, {"batch_size": 20, "kernel": "rbf"}, {}, {"estimator": "biased"}):
        want = gl.cka_matrix(*layers, **keywords)
        got = gl.cka_matrix(xs, ys, precision="exact", backend=BACKEND, **keywords)
        assert np.abs(got.values - want.values).max() <= bounds.SAME_FP64, keywords
    with pytest.raises(RuntimeError, match="give batch_size"):
        gl.cka_matrix(xs, ys, kernel="rbf", backend=BACKEND)


def test_refusals(layers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("minibatch", "exact"):
        with pytest.raises(ValueError, match="LayerGrid: expected precision"):
            gl.LayerGrid(mode, precision="half")
    stream = grid(backend=BACKEND).update(*part(layers, 0, 30, on_gpu=True))
    xs, ys = part(layers, 0, 30, on_gpu=True)
    with pytest.raises(ValueError, match="changed number of features: x/b 20 to 19"):
        stream.update(xs | {"b": xs["b"][:, 1:]}, ys)
    assert stream.n == 30
    monkeypatch.setattr(arguments, "gpu_of", lambda x: "cuda:1" if tuple(x.shape) == (30, 5) else "cuda:0")
    with pytest.raises(RuntimeError, match="same device"):
        stream.update(xs, ys)


def test_other_layers_after_reset(layers: Any) -> None:
    stream = grid(backend=BACKEND).update(*part(layers, 0, 30, on_gpu=True))
    stream.reset()
    assert "layers=0 x 0" in repr(stream)
    xs, ys = part(layers, 0, 30, on_gpu=True)
    assert stream.update({"a": xs["a"]}, ys).finalize().layers_x == ("a",)
    other = grid(backend=BACKEND).update(xs, ys)
    stream.load_state_dict(other.state_dict())
    assert stream.update(xs, ys).finalize().layers_x == ("a", "b")


def test_copies(layers: Any) -> None:
    stream = grid(backend=BACKEND).update(*part(layers, 0, 30, on_gpu=True))
    for again in (copy.deepcopy(stream), pickle.loads(pickle.dumps(stream))):
        assert again.update(*part(layers, 30, 64, on_gpu=True)).n == 64
    assert stream.n == 30
