"""Which of a product of cases run by default: every value of every parameter, rarer combinations at night.

A kernel in Triton's interpreter takes a second where the host takes a millisecond, and most of a product of cases says
again what one of its members said. Every item that is not chosen carries the mark `nightly`; on a GPU all are chosen.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import pytest

from support import device

_TESTS = Path(__file__).resolve().parents[1]
# how many parameters at a time take all their values together: of the definition, and of code without vectors, one;
# of the compiled kernels, whose loops depend on the type and on the shape, two
_STRENGTH = {"reference": 1, "cpu-scalar": 1, "cpu": 2, "interpret": 1}
_LABELS = ("backend_label", "host_label")


def covering(cases: Sequence[Mapping[str, Hashable]], strength: int) -> list[int]:
    """Places of cases that have every combination of values of so many parameters, chosen greedily.

    Of cases that add as much, the one whose values were chosen least, and then the first: so that a second parameter
    goes round with the first.
    """
    size = min(strength, min((len(case) for case in cases), default=0))
    groups = [[frozenset(group) for group in combinations(case.items(), size)] for case in cases]
    missing = {group for found in groups for group in found}
    seen: Counter[tuple[str, Hashable]] = Counter()
    chosen: list[int] = []
    while missing:
        gains = [sum(group in missing for group in found) for found in groups]
        best = max(gains)
        equal = [place for place, gain in enumerate(gains) if gain == best]
        place = min(equal, key=lambda one: (sum(seen[item] for item in cases[one].items()), one))
        chosen.append(place)
        missing.difference_update(groups[place])
        seen.update(cases[place].items())
    return sorted(chosen)


def at_night(*values: object) -> list:
    """Values of a parameter that another value stands for by default, where the interpreter runs the kernels."""
    marks = (pytest.mark.nightly,) if device.label() == "interpret" else ()
    return [pytest.param(value, marks=marks) for value in values]


def _parameters(item: pytest.Item) -> dict[str, object]:
    return dict(item.callspec.params) if hasattr(item, "callspec") else {}


def _label(item: pytest.Item) -> str:
    """The backend of an item of a kernel, and of any item of a GPU that which stands for it."""
    found = next((value for name, value in _parameters(item).items() if name in _LABELS), "")
    return str(found) if found else device.label() if _TESTS / "gpu" in item.path.parents else ""


def mark_nightly(items: Iterable[pytest.Item]) -> None:
    """Mark what the chosen items of each test and backend leave out. An item that is asked for alone is chosen."""
    products: defaultdict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    for item in items:
        ours = {_TESTS / "gpu", _TESTS / "kernels"} & set(item.path.parents)
        if ours and _label(item) in _STRENGTH and item.get_closest_marker("nightly") is None:
            products[item.nodeid.partition("[")[0], _label(item)].append(item)
    for (_, label), members in products.items():
        cases = [{k: repr(v) for k, v in _parameters(one).items() if k not in _LABELS} for one in members]
        if all(len(case) > 1 for case in cases):
            pairs = any(one.get_closest_marker("pairwise") for one in members)
            chosen = set(covering(cases, 2 if pairs else _STRENGTH[label]))
            for place, one in enumerate(members):
                if place not in chosen:
                    one.add_marker(pytest.mark.nightly)
