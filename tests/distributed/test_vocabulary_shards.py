"""Two models whose labels lie in several processes, over gloo on the loopback interface, against one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import gramless as gl
from support import bounds
from support.processes import launch

# what every process has of all labels before it takes its own, as does this one; its labels are cut at cuts[world]
SETUP = """
N, V = 30, 23
cuts = {1: (0, V), 2: (0, 9, V), 3: (0, 1, 15, V)}
rng = np.random.default_rng(4)
h1, w1 = rng.standard_normal((N, 7)), rng.standard_normal((V, 7))
h2, w2 = h1[:, :5] + 0.1, w1[:, :5] + 0.3 * rng.standard_normal((V, 5))
b1, b2 = rng.standard_normal((2, V))
targets, mask = rng.integers(-1, V, N), rng.random(N) < 0.7
labels = np.array([22, 3, 5, 16, 11, 1, 0, 20])
# all labels of one slice or two, and of a slice and some of the next
early, late = np.arange(V) < 15, np.arange(V) >= 7
endless = np.float64(-np.inf)
z1, z2 = h1 @ w1.T, h2 @ w2.T
z1[::3, :16] = endless
z2[::4, 1:15] = endless
z2[5::10, 15:] = endless
bad = h1.copy()
bad[3, 2] = np.nan
models, few = (h1, w1, h2, w2), {"labels": labels, "targets": rng.choice(labels, N)}
made_with, twice = {"temperature": 0.7, "softcap1": 3.0, "softcap2": 2.0}, {"divergences": True}
# of each case the models, what is given of labels, and what is given of all
CASES = {
    "plain": (models, {}, {"targets": targets}),
    "js and tv": (models, {}, {"targets": targets, "mask": mask, **twice}),
    "float32": (tuple(a.astype(np.float32) for a in models), {}, twice),
    "options": (models, {"b1": b1, "b2": b2}, {**few, **made_with, "mask": mask}),
    "labels of the last": (models, {"b1": b1}, {"labels": np.arange(16, V), **twice}),
    "one masks slices": (models, {"b1": np.where(early, endless, b1)}, {"targets": targets, **twice}),
    "the other does": (models, {"b2": np.where(late, endless, b2)}, {"targets": targets, **twice}),
    "each masks slices": (models, {"b1": np.where(late, endless, 0), "b2": np.where(early & ~late, endless, b2)}, {}),
    "both mask slices": (models, {"b1": np.where(early, endless, b1), "b2": np.where(early, endless, 0.0)}, twice),
    "logits": ((z1, None, z2, None), {}, {"targets": np.where(targets > 3, targets, -1), "mask": mask, **twice}),
    "logits and labels": ((z1, None, z2, None), {"b1": b1}, {"labels": np.arange(14, V), **twice}),
    "logits of one": ((h1, w1, z2, None), {"b1": np.where(early, endless, b1)}, twice),
    "a target of neither": (
        (h1, w1, z2, None), {"b1": np.where(np.arange(V) == 3, endless, b1)}, {"targets": np.full(N, 3)}
    ),
    "nan": ((bad, w1, h2, w2), {"b1": np.where(early, endless, b1)}, {**twice, "nonfinite": "propagate"}),
    "a row without labels": (
        (np.where((np.arange(N) == 2)[:, None], endless, z1), None, z2, None), {}, {**twice, "nonfinite": "propagate"}
    ),
    "no rows": ((h1[:0], w1, h2[:0], w2), {}, twice),
    "no row counts": (models, {}, {"mask": mask & False}),
}


def sliced(models, of_labels, part):
    arrays = [m[:, part] if w is None else m for m, w in zip(models[::2], models[1::2])]
    heads = [(h, None if w is None else w[part]) for h, w in zip(arrays, models[1::2])]
    return [a for head in heads for a in head], {name: b[part] for name, b in of_labels.items()}
"""
SLICED = """
from gramless import distributed
part = slice(cuts[world][rank], cuts[world][rank + 1])
"""


def scope() -> dict[str, Any]:
    made: dict[str, Any] = {"np": np}
    exec(SETUP, made)
    return made


HERE = scope()


def assert_same(got: Any, want: Any, what: str) -> None:
    """Every field of a saved state of slices is that of one pass; beside a log normaliser of NaN none has a meaning."""
    sums = {name: values for name, values in vars(want).items() if name.startswith("lse")}
    for name, values in vars(want).items():
        if not isinstance(values, np.ndarray):
            continue
        found = got[name]
        assert found.dtype == values.dtype, f"{what}: {name}"
        own = sums.get(f"lse{name[-2:]}", sum(sums.values())) if not name.startswith("delta") else sum(sums.values())
        sound = np.full(len(values), True) if name in sums else ~np.isnan(own)
        if name.startswith("delta"):
            assert np.isnan(found[~sound]).all(), f"{what}: {name}"
        found, values = found[sound], values[sound]
        finite = np.isfinite(values)
        np.testing.assert_array_equal(found[~finite], values[~finite], f"{what}: {name}")
        if values.dtype == np.int64:
            np.testing.assert_array_equal(found, values, f"{what}: {name}")
        kind = bounds.INVARIANCE_FP32 if what == "float32" else bounds.SAME_FP64
        scale = np.maximum(100.0, np.abs(values[finite]))
        assert (np.abs(found[finite] - values[finite]) <= kind * scale).all(), f"{what}: {name}"
    assert int(got["labels"]) == want.labels, what


PAIRS = """
for index, (name, (models, of_labels, options)) in enumerate(CASES.items()):
    given, biases = sliced(models, of_labels, part)
    for repeat in range(2):
        state = distributed.logit_pairs(*given, **biases, **options)
        arrays = {key: value for key, value in vars(state).items() if isinstance(value, np.ndarray)}
        np.savez(f"{folder}/{index}.{repeat}.{rank}.npz", labels=state.labels, **arrays)
"""


@pytest.mark.parametrize("world", [1, 2, 3])
def test_is_the_state_of_all_labels(tmp_path: Path, world: int) -> None:
    launch(SETUP + SLICED + PAIRS, world, tmp_path)
    for index, (name, (models, of_labels, options)) in enumerate(HERE["CASES"].items()):
        want = gl.logit_pairs(*models, **of_labels, **options)
        first = dict(np.load(tmp_path / f"{index}.0.0.npz"))
        assert_same(first, want, name)
        for repeat in range(2):
            for rank in range(world):
                with np.load(tmp_path / f"{index}.{repeat}.{rank}.npz") as found:
                    bounds.assert_same_dicts(dict(found), first, f"{name}: repeat {repeat}, process {rank}")


SUMS = """
for index, (name, (models, of_labels, options)) in enumerate(CASES.items()):
    options = {key: value for key, value in options.items() if key not in ("divergences", "softcap1", "softcap2")}
    (h, w, *_), biases = sliced(models, of_labels, part)
    state = distributed.logsumexp(h, w, b=biases.get("b1"), **options)
    arrays = {key: value for key, value in vars(state).items() if isinstance(value, np.ndarray)}
    np.savez(f"{folder}/{index}.{rank}.npz", labels=state.labels, **arrays)
"""


@pytest.mark.parametrize("world", [2, 3])
def test_of_one_model(tmp_path: Path, world: int) -> None:
    # a target that this model masks is one of the other alone
    cases = {name: case for name, case in HERE["CASES"].items() if "b1" not in case[1] or "targets" not in case[2]}
    assert len(cases) > 8
    kept = f"CASES = {{name: case for name, case in CASES.items() if name in {list(cases)}}}\n"
    launch(SETUP + kept + SLICED + SUMS, world, tmp_path)
    for index, (name, ((h, w, *_), of_labels, options)) in enumerate(cases.items()):
        told = {key: value for key, value in options.items() if key not in ("divergences", "softcap1", "softcap2")}
        want = gl.logsumexp(h, w, b=of_labels.get("b1"), **told)
        first = dict(np.load(tmp_path / f"{index}.0.npz"))
        assert_same(first, want, name)
        for rank in range(world):
            with np.load(tmp_path / f"{index}.{rank}.npz") as found:
                bounds.assert_same_dicts(dict(found), first, f"{name}: process {rank}")


COMPARED = """
ignored = np.where(targets < 3, -100, targets)
(h1, w1, h2, w2), _ = sliced(models, {}, part)
options = {"targets": ignored, "ignore_index": -100, "mask": mask, "temperature": 1.3, "softcap2": 5.0}
found = distributed.compare_logits(h1, w1, h2, w2, batch_rows=11, **options)
print(json.dumps(found.to_dict()))
stream = gl.LogitPairs(temperature=1.3, softcap2=5.0)
for rows in (slice(0, 20), slice(20, N)):
    stream.add(distributed.logit_pairs(
        h1[rows], w1, h2[rows], w2, targets=ignored[rows], mask=mask[rows] & (ignored[rows] != -100), divergences=True,
        temperature=1.3, softcap2=5.0,
    ))
print(json.dumps(stream.finalize().to_dict()))
found = distributed.compare_logits(h1, w1, h2, w2, keep_rows=True, divergences=False)
print(found.js, found.rows["kl_pq"].tobytes().hex())
"""


def test_comparisons_and_streams(tmp_path: Path) -> None:
    outputs = launch("import json\n" + SETUP + SLICED + COMPARED, 3, tmp_path)
    assert len(set(outputs)) == 1
    models, targets = HERE["models"], np.where(HERE["targets"] < 3, -100, HERE["targets"])
    options: dict[str, Any] = {"mask": HERE["mask"], "temperature": 1.3, "softcap2": 5.0}
    want = gl.compare_logits(*models, targets=targets, ignore_index=-100, **options)
    compared, streamed, kept = outputs[0].splitlines()
    for found in (json.loads(compared), json.loads(streamed)):
        assert (found["n"], found["labels"], found["n_targets"]) == (want.n, want.labels, want.n_targets)
        for name, error in want.stderr.items():
            bounds.assert_relative(found[name], getattr(want, name), bounds.SAME_FP64, name)
            bounds.assert_relative(found["stderr"][name], error, bounds.SAME_FP64, f"stderr of {name}")
    js, rows = kept.split()
    whole = gl.compare_logits(*models, keep_rows=True, divergences=False).rows
    assert js == "None"
    assert whole is not None
    scale = np.full(len(whole["kl_pq"]), 100.0)
    bounds.assert_within_algebra(np.frombuffer(bytes.fromhex(rows)), whole["kl_pq"], scale, "kl_pq")


REFUSED = """
(h1, w1, h2, w2), given = sliced(models, {{}}, part)
function = distributed.logit_pairs
{spoil}
try:
    function(h1, w1, h2, w2, **given)
    print("nothing is wrong")
except (TypeError, ValueError, RuntimeError) as error:
    print(type(error).__name__, error)
"""
# what one process has, and the others are told of
ALONE = {
    "nan": (
        "if rank == 1: w2 = np.where(np.arange(len(w2))[:, None] == 3, np.nan, w2)",
        "ValueError logit_pairs: w2 has non-finite values in rows 0..",
        1,
    ),
    "shape": ("if rank == 2: w1 = w1[:, :4]", "ValueError logit_pairs: expected h1 (N, d) and w1 (V, d)", 2),
    "labels": ("if rank == 0: w2 = w2[:0]", "ValueError logit_pairs: expected w2 with at least one row", 0),
    "option": ("if rank == 0: given['temperature'] = -1", "ValueError logit_pairs: expected temperature above 0", 0),
    "of one model": (
        "given['b1'] = np.full(len(w1), -np.inf if rank == 1 else 0.0)\nif rank == 1: h2 = h2 * np.inf",
        "ValueError logit_pairs: h2 has non-finite values in rows 0..29",
        1,
    ),
    "batch": (
        "function = distributed.compare_logits\ngiven['batch_rows'] = 10\n"
        "if rank == 1: h1 = np.where((np.arange(N) == 26)[:, None], np.nan, h1)",
        "ValueError compare_logits: h1 has non-finite values in rows 20..29",
        1,
    ),
}


def refused(folder: Path, cases: dict[str, tuple[Any, ...]]) -> list[list[str]]:
    """What each of three processes has said to each of these cases, one after the other."""
    program = SETUP + SLICED + "whole = models\n"
    for spoil, *_ in cases.values():
        program += "models = whole" + REFUSED.format(spoil=spoil)
    return [out.splitlines() for out in launch(program, 3, folder)]


def test_an_error_of_one_process_is_one_of_all(tmp_path: Path) -> None:
    for rank, lines in enumerate(refused(tmp_path, ALONE)):
        for line, (case, (_, there, source)) in zip(lines, ALONE.items(), strict=True):
            elsewhere = f"RuntimeError {there.split()[1]} process {source} has an error: {there.replace(' ', ': ', 1)}"
            assert line.startswith(there if rank == source else elsewhere), f"{case}: {line}"


# what all refuse alike
TOGETHER = {
    "temperature": (
        "given['temperature'] = 1.0 + rank // 2", "process 2 has temperature=2.0, not 1.0, unlike process 0"
    ),
    "targets": ("given['targets'] = targets + (rank == 1)", "process 1 has other targets, unlike process 0"),
    "rows": ("if rank == 1: h1, h2 = h1[:9], h2[:9]", "process 1 has rows=9, not 30"),
    "dtype": ("if rank == 2: w1 = w1.astype(np.float32)", "process 2 has w1='float32', not 'float64'"),
    "logits": (
        "if rank == 2: h2, w2 = (h2 @ w2.T), None",
        "process 2 has h2='logits in float64', not 'hidden states of 5 in float64' and w2=None",
    ),
    "hidden states": ("if rank == 1: h2 = h2[::-1]", "process 1 has other hidden states h2 than process 0"),
    "target": ("given['targets'] = np.full(N, V)", "expected targets from 0 to 22, or -1 for none, got 23 in row 0"),
    "label": ("given['labels'] = [1, 23]", "expected labels from 0 to 22, got 23"),
    "target of no label": (
        "given['labels'] = [0, 20]\ngiven['targets'] = np.full(N, 3)", "target 3 of row 0 is not among the labels"
    ),
    "masked": ("given['b2'] = np.full(len(w2), -np.inf)", "b2 masks every label, expected one that is above -inf"),
    "no label": (
        "h1, w1 = h1 @ w1.T, None\nh1[4] = -np.inf\nfunction = distributed.compare_logits\ngiven['batch_rows'] = 3",
        "row 4 of h1 has no label that can be",
    ),
    "no rows": ("h1, h2 = h1[:0], h2[:0]\nfunction = distributed.compare_logits", "expected at least one row that"),
    "ignore": ("given['ignore_index'] = 3\nfunction = distributed.compare_logits", "ignore_index=3 needs targets"),
}  # fmt: skip


def test_what_all_refuse(tmp_path: Path) -> None:
    for lines in refused(tmp_path, TOGETHER):
        for line, (case, (spoil, text)) in zip(lines, TOGETHER.items(), strict=True):
            function = "compare_logits" if "compare" in spoil else "logit_pairs"
            assert line.startswith(f"ValueError {function}: "), f"{case}: {line}"
            assert text in line, f"{case}: {line}"


def test_groups(tmp_path: Path) -> None:
    program = """
group = dist.new_group([0, 2])
try:
    part = slice(0, 15) if rank == 0 else slice(15, V)
    given, _ = sliced(models, {}, part)
    print(distributed.logit_pairs(*given, group=group).lse_p.sum().hex())
except RuntimeError as error:
    print(error)
"""
    first, outside, last = launch(SETUP + SLICED + program, 3, tmp_path)
    assert "not in the group" in outside
    assert first == last
    want = gl.logit_pairs(*HERE["models"]).lse_p.sum()
    bounds.assert_relative(float.fromhex(first.strip()), want, bounds.SAME_FP64)


def test_needs_processes() -> None:
    from gramless import distributed

    with pytest.raises(RuntimeError, match=r"logsumexp: torch\.distributed is not initialised"):
        distributed.logsumexp(np.eye(3), np.eye(3))
