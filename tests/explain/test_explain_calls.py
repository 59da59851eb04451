"""What `explain` takes is what the function takes that it explains, positionally and by name."""

from __future__ import annotations

import inspect
import re
from typing import Any

import numpy as np
import pytest

import gramless as gl

X, Y = np.zeros((30, 4), np.float32), np.zeros((30, 3), np.float32)
W, V = np.zeros((50, 4), np.float32), np.zeros((50, 3), np.float32)
ARRAYS = {
    **dict.fromkeys(("hsic", "cka", "cka_distance", "hsic_test", "moments", "gram_sums"), (X, Y)),
    "cka_matrix": ([X], [Y]),
    "logsumexp": (X, W),
    **dict.fromkeys(("logit_pairs", "compare_logits", "logit_distance"), (X, W, Y, V)),
}


def parameters(function: str, *, by_keyword: bool) -> dict[str, Any]:
    found = inspect.signature(getattr(gl, function)).parameters.values()
    return {p.name: p.default for p in found if (p.kind is p.KEYWORD_ONLY) is by_keyword}


@pytest.mark.parametrize("function", ARRAYS)
class TestCalls:
    def test_defaults_are_those_of_the_function(self, function: str) -> None:
        defaults = parameters(function, by_keyword=True)
        assert gl.explain(function, *ARRAYS[function], **defaults) == gl.explain(function, *ARRAYS[function])

    def test_arrays_by_name(self, function: str) -> None:
        said, arrays = gl.explain(function, *ARRAYS[function]), ARRAYS[function]
        names = list(parameters(function, by_keyword=False))
        assert said == gl.explain(measure=function, **dict(zip(names, arrays, strict=True)))
        assert said == gl.explain(function, arrays[0], **dict(zip(names[1:], arrays[1:], strict=True)))

    def test_calls_that_do_not_fit(self, function: str) -> None:
        """Say so in the words of the function."""
        arrays, first = ARRAYS[function], next(iter(parameters(function, by_keyword=False)))
        for given, keywords in (
            ((), {}),
            ((*arrays, X), {}),
            (arrays, {first: X}),
            (arrays, {"z": X}),
            ((), {"y": X}),
        ):
            with pytest.raises(TypeError) as of_function:
                getattr(gl, function)(*given, **keywords)
            if function == "cka_matrix" and "y" in keywords:
                continue
            with pytest.raises(TypeError, match=f"^{re.escape(str(of_function.value))}$"):
                gl.explain(function, *given, **keywords)


def test_layers_as_x_and_y() -> None:
    said = gl.explain("cka_matrix", [X], [Y])
    assert said == gl.explain("cka_matrix", x=[X], y=[Y]) == gl.explain("cka_matrix", [X], y=[Y])
    assert gl.explain("cka_matrix", x=[X]) == gl.explain("cka_matrix", [X])
    with pytest.raises(TypeError, match=r"^cka_matrix\(\) got an unexpected keyword argument 'x'"):
        gl.explain("cka_matrix", xs=[X], x=[X])
    with pytest.raises(TypeError, match=r"^cka_matrix\(\) missing 1 required positional argument: 'xs'"):
        gl.explain("cka_matrix", y=[Y])


@pytest.mark.parametrize("measure", ["cka_grid", "", "logit_divergences", None, 3])
def test_other_measures_are_refused(measure: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"^explain: expected measure to be one of 'hsic', .*'logit_dist"):
        gl.explain(measure, X, Y)
