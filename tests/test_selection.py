"""The choice of cases that run by default: every value, or every pair of values, and no more than that takes."""

from __future__ import annotations

from itertools import product

from support.selection import covering

CASES = [dict(zip("abc", values, strict=True)) for values in product(range(5), range(4), range(3))]


def test_every_value_is_chosen() -> None:
    chosen = [CASES[place] for place in covering(CASES, 1)]
    assert len(chosen) == 5
    for name, count in zip("abc", (5, 4, 3), strict=True):
        assert {case[name] for case in chosen} == set(range(count))


def test_every_pair_of_values_is_chosen() -> None:
    chosen = [CASES[place] for place in covering(CASES, 2)]
    assert 20 <= len(chosen) < 30
    for first, second in ("ab", "ac", "bc"):
        assert {(case[first], case[second]) for case in chosen} == {(case[first], case[second]) for case in CASES}


def test_a_second_parameter_goes_round() -> None:
    cases = [{"case": case, "dtype": dtype} for case in range(8) for dtype in range(4)]
    assert [cases[place]["dtype"] for place in covering(cases, 1)] == [0, 1, 2, 3] * 2


def test_what_cannot_be_left_out_stays() -> None:
    assert covering([{"a": 0, "b": 0}], 2) == [0]
    assert covering([{"a": 0}, {"a": 1}], 2) == [0, 1]
