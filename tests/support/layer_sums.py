"""Layers whose sums are judged as those of pairs: what a pass over many layers says of one of them, or of two."""

from __future__ import annotations

import numpy as np

from gramless import ops
from support import cases, judge
from support.backends import Backend

Arrays = list[np.ndarray]
# narrow ones share a block; with few tiles, wide ones are cut
WIDTHS_X, WIDTHS_Y = (3, 64, 7, 110, 24), (17, 5, 48)


def layers(dtype: str, n: int = 300, offset: float = 0.0, seed: int = 0) -> tuple[Arrays, Arrays]:
    """Layers of x and of y over one latent, at this distance from 0."""
    rng = np.random.default_rng(seed)
    latent = rng.standard_normal((n, 4))
    made = []
    for widths in (WIDTHS_X, WIDTHS_Y):
        found = [latent @ rng.standard_normal((4, p)) / 2 + rng.standard_normal((n, p)) for p in widths]
        made.append([(x + offset * rng.uniform(-1, 1, x.shape[1])).astype(cases.DTYPES[dtype]) for x in found])
    return made[0], made[1]


def sums(backend: Backend, xs: Arrays, ys: Arrays | None = None, **keywords: object) -> object:
    """The state of a pass; a GPU computes in float64."""
    on_backend = [None if side is None else [backend.array(x) for x in side] for side in (xs, ys)]
    return ops.layer_moments(*on_backend, precision="exact", backend=backend.name, **keywords)


def own_sums(state: object, place: int, name: str = "x") -> dict:
    """The sums of one layer of x, or of y, under the names of the kernel of two arrays."""
    side = state.x if name == "x" else state.y
    part = side.parts(state.n)[place]
    fields = ("pivot", "sum", "second", "weighted", "norms", "cubes", "fourths")
    return {key: host(getattr(part, field)) for field, key in zip(fields, judge.keys_of("x"), strict=True)} | {
        "n": state.n
    }


def pair_sums(state: object, a: int, b: int) -> dict:
    """The sums of layer a of x with its partner b, under the names of the kernel of two arrays."""
    weighted_y = state.weighted_x if state.weighted_y is None else state.weighted_y
    starts_x, starts_y = ([0, *np.cumsum(side.widths).tolist()] for side in (state.x, state.partners))
    return {
        "n": state.n,
        "sxy": host(state.block(a, b)),
        "weighted_xy": host(state.weighted_x[starts_x[a] : starts_x[a + 1], b]),
        "weighted_yx": host(weighted_y[starts_y[b] : starts_y[b + 1], a]),
        "norms_xy": float(state.norms[a, b]),
    }


def pairs(state: object) -> list[tuple[int, int]]:
    count = len(state.partners.widths)
    return [(a, b) for a in range(len(state.x.widths)) for b in range(count) if state.y is not None or a < b]


def host(value: object) -> np.ndarray:
    return value if isinstance(value, np.ndarray | np.floating) else value.cpu().numpy()


def assert_layers(state: object, xs: Arrays, ys: Arrays | None = None) -> None:
    """Every layer and every pair no worse than the naive expressions."""
    for name, side in {"x": xs, "y": ys or []}.items():
        for place, x in enumerate(side):
            judge.assert_moments(own_sums(state, place, name), x, x, judge.X_KEYS)
    own = {"x": [own_sums(state, k)["pivot_x"] for k in range(len(xs))]}
    own["y"] = own["x"] if ys is None else [own_sums(state, k, "y")["pivot_x"] for k in range(len(ys))]
    for a, b in pairs(state):
        judge.assert_entries(pair_sums(state, a, b), xs[a], (ys or xs)[b], own["x"][a], own["y"][b])
