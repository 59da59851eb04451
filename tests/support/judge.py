"""How the flat dict of the moments kernel is judged, for every test that makes one."""

from __future__ import annotations

import numpy as np

from support import bounds, oracle


def keys_of(side: str) -> tuple[str, ...]:
    return (
        f"pivot_{side}",
        f"sum_{side}",
        f"s{side}{side}",
        f"weighted_{side}{side}",
        f"norms_{side}{side}",
        f"cubes_{side}",
        f"fourths_{side}",
    )


ALL_KEYS = {"n", *keys_of("x"), *keys_of("y"), *oracle.CROSS_KEYS}
X_KEYS = {"n", *keys_of("x")}
CROSS_ONLY_KEYS = {"n", *oracle.CROSS_KEYS}


def assert_moments(got: dict, x: np.ndarray, y: np.ndarray, keys: set[str] = frozenset(ALL_KEYS)) -> None:
    """Every entry no worse than the naive expression about the pivot that the kernel says it used."""
    assert set(got) == keys, f"keys differ: {sorted(set(got) ^ keys)}"
    assert got["n"] == len(x)
    pivot_x = got.get("pivot_x", np.zeros(x.shape[1]))
    pivot_y = got.get("pivot_y", np.zeros(y.shape[1]))
    assert_entries(got, x, y, pivot_x, pivot_y)


def assert_entries(got: dict, x: np.ndarray, y: np.ndarray, pivot_x: np.ndarray, pivot_y: np.ndarray) -> None:
    truth = oracle.moments(x, y, pivot_x, pivot_y)
    naive = oracle.naive_moments(x, y, pivot_x, pivot_y)
    scale = oracle.moment_scales(x, y, pivot_x, pivot_y)
    compute = oracle.compute_dtype(x, y)
    for key in got:
        if key == "n" or key.startswith("pivot"):
            continue
        bounds.assert_no_worse_than_naive(
            got[key], truth[key], naive[key], compute=compute, scale=scale[key], terms=len(x), what=key
        )


def kernel_names(state: dict) -> dict:
    """The flat dict of a saved state under the names of the kernel."""
    names = {"n": "n", "cross.second": "sxy", "cross.norms": "norms_xy"}
    names |= {"cross.weighted_x": "weighted_xy", "cross.weighted_y": "weighted_yx"}
    for side in ("x", "y"):
        fields = ("pivot", "sum", "second", "weighted", "norms", "cubes", "fourths")
        names |= {f"{side}.{field}": key for field, key in zip(fields, keys_of(side), strict=True)}
    return {names[key]: value for key, value in state.items() if key != "format"}


def assert_state(state: object, x: np.ndarray, y: np.ndarray) -> None:
    """A MomentState is the flat dict of the kernel under other names."""
    assert_moments(kernel_names(state.to_dict()), x, y)


def assert_types(got: dict) -> None:
    """Plain NumPy float64 arrays, Python floats, and n a Python int."""
    for key, value in got.items():
        if key == "n":
            assert type(value) is int
        elif key.startswith("norms"):
            assert type(value) is float, f"{key} is a {type(value)}"
        else:
            assert type(value) is np.ndarray, f"{key} is a {type(value)}"
            assert value.dtype == np.float64
            assert value.flags.writeable
            assert value.flags.c_contiguous


def assert_pivot(pivot: np.ndarray, x: np.ndarray) -> None:
    """The medians of the first rows, rounded to the compute dtype (float32 for 16-bit rows)."""
    own = np.float64 if x.dtype == np.float64 else np.float32
    want = oracle.pivot(x)
    assert pivot.dtype == np.float64
    assert pivot.shape == want.shape
    assert np.array_equal(pivot.astype(own).astype(np.float64), pivot), "the pivot is not a value of its dtype"
    spread = np.abs(np.asarray(x[:64]).astype(np.float64)).mean(axis=0)
    bounds.assert_pivot_rounding(pivot, want, spread, own)
