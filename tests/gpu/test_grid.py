"""Grids of layers from batches on a GPU: the answers of the host, in buffers that stay, without a wait."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import gramless as gl
from gramless._triton.layer_grid import plan
from gramless._triton.tiles import launch
from gramless.layers.leftover_rows import Carry
from support import bounds, cases, device, gpu_grids, grids
from support.gpu_grids import fed, result
from support.selection import at_night

pytestmark = pytest.mark.usefixtures("gpu_backend")

SIZES = (36, 9, 4)
# of the rbf kernel: the median distance of each batch, and one number for all
WIDTHS = (("linear", None), ("rbf", "median"), ("rbf", 3.0))
RULES = (("linear", None), ("rbf", "median"), ("rbf", "kornblith"), ("rbf", 3.0))


def parts_of(dtype: str = "fp64", sizes: tuple[int, ...] = SIZES, seed: int = 4) -> list[gpu_grids.Part]:
    return grids.batches(grids.layers(dtype, n=sum(sizes), seed=seed), sizes)


def plain(width: float | str | None) -> float | None:
    return None if isinstance(width, str) else width


class TestValue:
    @pytest.mark.parametrize(
        ("kernel", "width", "dtype"),
        [*(("linear", None, dtype) for dtype in cases.DTYPES), ("rbf", "median", "bf16"), ("rbf", 3.0, "fp32")],
    )
    def test_against_dense_matrices(self, kernel: str, width: float | str | None, dtype: str) -> None:
        parts = parts_of(dtype)
        want = grids.minibatch(parts, kernel, plain(width))
        grids.assert_grid(result(fed(parts, kernel, width), kernel, width), want, np.float64)

    @pytest.mark.parametrize(("kernel", "width"), RULES)
    def test_every_moment_is_that_of_the_definition(self, kernel: str, width: float | str | None) -> None:
        """Of one side against itself, in batches of two blocks of rows and of one; two sides are below."""
        parts = [(xs, None) for xs, _ in parts_of(sizes=(70, 9))]
        scale = 1.5 if kernel == "rbf" else 1.0
        made = fed(parts, kernel, width, scale=scale).table("test")
        want = gpu_grids.reference(parts, kernel, width, scale=scale)
        gpu_grids.assert_tables(made, want)
        if kernel == "rbf":
            for key in ("means", "below_one"):
                np.testing.assert_array_less(np.abs(made.arrays[key] - want.arrays[key]), bounds.SAME_FP64)

    def test_equal_weights(self) -> None:
        parts = parts_of()
        got = fed(parts, weights="equal").table("test")
        gpu_grids.assert_tables(got, gpu_grids.reference(parts, "linear", None, weights="equal"))

    @pytest.mark.parametrize("precision", ["fast", "high"])
    @pytest.mark.parametrize(("kernel", "width"), WIDTHS[:2])
    def test_float32_is_rounded_once(self, kernel: str, width: str | None, precision: str) -> None:
        """The same with planes that have lost their lower half would be off by a hundred times as much."""
        parts = parts_of("fp32", (36, 20))
        got = result(fed(parts, kernel, width, precision=precision), kernel, width)
        emulated = gpu_grids.lost(parts, kernel, precision)
        gpu_grids.assert_within_rounding(got, grids.minibatch(parts, kernel), emulated, precision)

    @pytest.mark.parametrize("offset", [*at_night(*bounds.FIRST_OFFSETS[1:-1]), bounds.FIRST_OFFSETS[-1]])
    def test_means_cost_no_digits(self, offset: float) -> None:
        parts = [
            tuple({k: v + np.float32(offset) for k, v in side.items()} for side in part) for part in parts_of("fp32")
        ]
        got = result(fed(parts, precision="high"))
        emulated = gpu_grids.lost(parts, "linear", "high")
        gpu_grids.assert_within_rounding(got, grids.minibatch(parts), emulated, f"mean {offset}")

    @pytest.mark.parametrize(
        ("dtype", "precision", "offset"), [("fp16", "high", 0.0), ("fp16", "fast", 30.0), ("bf16", "high", 30.0)]
    )
    def test_16_bits_are_not_rounded(self, dtype: str, precision: str, offset: float) -> None:
        """One product is exact, whatever the precision: also of features far from 0, less a value near theirs."""
        kind = cases.DTYPES[dtype]
        parts = [
            tuple({k: (v.astype(np.float64) + offset).astype(kind) for k, v in side.items()} for side in part)
            for part in parts_of("fp64", (36, 20))
        ]
        got = result(fed(parts, precision=precision))
        gpu_grids.assert_within_rounding(got, grids.minibatch(parts), 0.0, dtype)

    def test_layers_of_every_dtype(self) -> None:
        """One launch for each dtype; float64 among them makes all of it float64."""
        parts = parts_of()
        mixed = [
            ({k: v.astype(t) for (k, v), t in zip(xs.items(), list(cases.DTYPES.values()), strict=False)}, ys)
            for xs, ys in parts
        ]
        gpu_grids.assert_tables(fed(mixed, precision="high").table("test"), gpu_grids.reference(mixed, "linear", None))

    def test_long_rows_are_summed_in_parts(self) -> None:
        rng = np.random.default_rng(3)
        parts = [({"a": rng.standard_normal((20, 1100))}, {"b": rng.standard_normal((20, 70))}) for _ in range(2)]
        gpu_grids.assert_tables(fed(parts).table("test"), gpu_grids.reference(parts, "linear", None))

    @pytest.mark.parametrize(("kernel", "width"), RULES)
    def test_bands_of_rows(self, monkeypatch: pytest.MonkeyPatch, kernel: str, width: float | str | None) -> None:
        """With room for a block of rows at a time, and bandwidths from one layer at a time."""
        monkeypatch.setattr(launch, "WORKSPACE_BYTES", 1)
        parts = parts_of(sizes=(70,))
        gpu_grids.assert_tables(fed(parts, kernel, width).table("test"), gpu_grids.reference(parts, kernel, width))

    def test_bandwidths_of_many_rows_are_those_of_some(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a batch goes by bands, of evenly spaced rows."""
        monkeypatch.setattr(launch, "WORKSPACE_BYTES", 1)
        monkeypatch.setattr(plan, "EXACT_ROWS", 40)
        ((xs, ys),) = parts_of(sizes=(70,))
        made = fed([(xs, ys)], "rbf", "median")
        for x, width in zip([*xs.values(), *ys.values()], made._grid._fixed.bandwidths.tolist(), strict=True):
            truth = grids.median_width(grids.squared_distances(x[::2], np.longdouble))
            bounds.assert_relative(width, float(truth), bounds.SAME_FP64)

    def test_one_side_is_symmetric_to_the_last_bit(self) -> None:
        xs = grids.layers("fp32", n=50)[0]
        made = fed([({**xs, "w": xs["z"][:, :2]}, None)] * 2, precision="high")
        table = made.table("test")
        for key in ("pairs", "centre_pairs", "pair_pair", "x_y"):
            bounds.assert_same_bits(table.arrays[key], table.arrays[key].T, key)
        bounds.assert_same_bits(table.arrays["pair_x"], table.arrays["pair_y"].T, "pair_x")
        assert (np.diagonal(result(made).values) == 1.0).all()

    def test_reruns_have_the_same_bits(self) -> None:
        parts = parts_of("fp32")
        first, second = (fed(parts, "rbf", "median", precision="high").table("test") for _ in range(2))
        bounds.assert_same_dicts(dict(first.arrays), dict(second.arrays))


class TestLayouts:
    @pytest.mark.parametrize("way", ["columns", "transposed", "shifted", "rows", "even"])
    def test_strides_and_offsets(self, way: str) -> None:
        rng = np.random.default_rng(5)
        base = rng.standard_normal((64, 128))
        view = {
            "columns": base[:21, ::2],
            "transposed": base.T[:21],
            "shifted": base[:21, 1:],
            "rows": base[::3, :64],
            "even": base[:21],
        }[way]
        parts = [({"a": view, "b": view[:, :5]}, None)]
        gpu_grids.assert_tables(fed(parts).table("test"), gpu_grids.reference(parts, "linear", None))

    def test_inputs_are_left_as_they_are(self) -> None:
        parts = parts_of("bf16")[:1]
        layers = gpu_grids.tensors(parts[0])
        copies = {name: rows.clone() for name, rows in layers.items()}
        gpu_grids.empty(parts[0]).update("test", layers)
        assert all(bool((layers[name] == copies[name]).all()) for name in layers)


class TestStreams:
    def test_fewer_rows_than_a_batch_wait(self) -> None:
        """Batches of 1, 2, 5, 3 and 1 rows are batches of 8 and 4."""
        parts = parts_of("fp32", (1, 2, 5, 3, 1))
        together = parts_of("fp32", (8, 4))
        made = gpu_grids.empty(parts[0])
        counts = []
        for part in parts:
            made.update("test", gpu_grids.tensors(part))
            table = made.table("test")
            counts.append((table.n if table else 0, made.carry("test").n))
        assert counts == [(0, 1), (0, 3), (8, 0), (8, 3), (12, 0)]
        gpu_grids.assert_tables(made.table("test"), gpu_grids.reference(together, "linear", None))

    def test_rows_that_wait_are_those_given(self) -> None:
        (part,) = parts_of("bf16", (3,))
        made = fed([part])
        for name, rows in gpu_grids.named(part).items():
            bounds.assert_same_bits(made.carry("test").rows[name], rows.astype(np.float32), name)

    def test_a_table_that_is_loaded_goes_on(self) -> None:
        parts = parts_of(sizes=(20, 20, 2, 30))
        first, second = fed(parts[:3]), gpu_grids.empty(parts[0])
        second.load(first.table("test"), first.carry("test"))
        second.update("test", gpu_grids.tensors(parts[3]))
        want = gpu_grids.reference(grids.batches(grids.layers(n=72), (20, 20, 32)), "linear", None)
        gpu_grids.assert_tables(second.table("test"), want)

    def test_tables_merge(self) -> None:
        parts = parts_of()
        first, second = fed(parts[:2]).table("test"), fed(parts[2:]).table("test")
        gpu_grids.assert_tables(first.merge(second), gpu_grids.reference(parts, "linear", None))

    def test_reset_forgets_all(self) -> None:
        parts = parts_of()
        made = fed([*parts[1:], parts_of(sizes=(2,))[0]])
        assert not made.untouched
        made.reset()
        assert made.untouched
        assert made.table("test") is None
        assert made.carry("test").n == 0
        made.update("test", gpu_grids.tensors(parts[1]))
        gpu_grids.assert_tables(made.table("test"), gpu_grids.reference(parts[1:2], "linear", None))

    def test_no_rows_change_nothing(self) -> None:
        (part,) = parts_of(sizes=(5,))
        made = gpu_grids.empty(part)
        made.update("test", gpu_grids.tensors(grids.batches(grids.layers(n=5), (0, 5))[0]))
        assert made.table("test") is None

    def test_more_memory_than_allowed_is_refused(self) -> None:
        parts = parts_of()
        made = gpu_grids.empty(parts[0], max_bytes=100_000)
        with pytest.raises(MemoryError, match=r"^test: this grid needs [\d,]+ bytes .* max_bytes is 100,000 bytes"):
            made.update("test", gpu_grids.tensors(parts[0]))
        assert made.table("test") is None


class TestOnTheDevice:
    @pytest.mark.parametrize("guard", gpu_grids.GUARDS)
    @pytest.mark.parametrize(("kernel", "width"), WIDTHS)
    def test_an_update_waits_for_nothing(self, kernel: str, width: float | str | None, guard: str) -> None:
        """New tensors of a shape that was seen before, and rows too few for a batch."""
        parts = parts_of("fp32", (20, 20, 3, 20))
        made = fed(parts[:1], kernel, width, precision="high")
        for part in parts[1:]:
            gpu_grids.GUARDS[guard](partial(made.update, "test", gpu_grids.tensors(part)))

    def test_the_guard_sees_a_wait(self) -> None:
        made = fed(parts_of()[:1])
        with pytest.raises(AssertionError, match="waits for the device in cpu"):
            gpu_grids.GUARDS["no reads"](lambda: made.table("test"))

    @pytest.mark.parametrize("repeat", gpu_grids.REPEATS)
    @pytest.mark.parametrize(("kernel", "width"), RULES)
    def test_what_lies_at_the_same_addresses(self, kernel: str, width: float | str | None, repeat: str) -> None:
        """Counters and moments are of the device: each run of the same launches adds a batch."""
        parts = parts_of(sizes=(20, 20))
        layers = gpu_grids.tensors(parts[0])
        made = gpu_grids.empty(parts[0], kernel, width)
        made.update("test", layers)
        for name, rows in gpu_grids.tensors(parts[1]).items():
            layers[name].copy_(rows)
        gpu_grids.REPEATS[repeat](partial(made.update, "test", layers))
        want = gpu_grids.reference([parts[0], parts[1], parts[1]], kernel, width)
        gpu_grids.assert_tables(made.table("test"), want)

    def test_buffers_stay_where_they_are(self) -> None:
        """From the first batch of the largest shape on; the moments from the beginning."""
        parts = parts_of()
        made = gpu_grids.empty(parts[0])
        state = made._grid.state.data_ptr()
        made.update("test", gpu_grids.tensors(parts[0]))
        memory = made._grid._memory.data_ptr()
        for part in parts:
            made.update("test", gpu_grids.tensors(part))
        made.load(made.table("test"), Carry())
        made.reset()
        made.update("test", gpu_grids.tensors(parts[0]))
        assert (made._grid.state.data_ptr(), made._grid._memory.data_ptr()) == (state, memory)

    @pytest.mark.parametrize(("kernel", "width", "count"), [("linear", None, 6), ("rbf", 3.0, 6), ("rbf", "median", 8)])
    def test_few_launches(self, kernel: str, width: float | str | None, count: int) -> None:
        """For layers of one dtype, however many there are."""
        made = gpu_grids.empty(parts_of()[0], kernel, width)
        with gpu_grids.recorded() as launches:
            made.update("test", gpu_grids.tensors(parts_of()[0]))
        assert len(launches) == count

    def test_bytes_are_those_of_the_moments(self) -> None:
        made = fed(parts_of())
        pairs, layers = len(grids.WIDTHS_X) * len(grids.WIDTHS_Y), len(grids.WIDTHS_X) + len(grids.WIDTHS_Y)
        assert made.nbytes == 8 * (4 + 6 * pairs + 7 * layers + 3)


class TestDegenerate:
    @pytest.mark.parametrize(
        ("dtype", "precision"), [("fp16", "fast"), ("bf16", "high"), ("fp32", "high"), ("fp64", "high")]
    )
    @pytest.mark.parametrize(("kernel", "width"), WIDTHS[:2])
    def test_dead_layers_are_named(self, kernel: str, width: str | None, dtype: str, precision: str) -> None:
        rng = np.random.default_rng(6)
        alive = rng.standard_normal((20, 6)).astype(cases.DTYPES[dtype])
        constant = np.full((20, 6), 3.1).astype(cases.DTYPES[dtype])
        table = fed([({"alive": alive, "constant": constant}, None)] * 2, kernel, width, precision=precision).table(
            "test"
        )
        assert list(table.problems(gpu_grids.kernel_of(kernel, width), "unbiased")) == ["x/constant"]

    def test_one_other_row_is_not_enough(self) -> None:
        rng = np.random.default_rng(6)
        lone = np.ones((20, 3), np.float32)
        lone[11] = 2.0
        table = fed([({"alive": rng.standard_normal((20, 6)), "lone": lone}, None)]).table("test")
        assert list(table.problems(gpu_grids.kernel_of("linear", None), "unbiased")) == ["x/lone"]

    def test_rows_that_are_mostly_equal_have_no_median(self) -> None:
        rng = np.random.default_rng(6)
        few = np.repeat(rng.standard_normal((2, 3)), (16, 4), axis=0)
        parts = [({"alive": rng.standard_normal((20, 6)), "few": few}, None)]
        table = fed(parts * 3, "rbf", "median", precision="high").table("test")
        assert table.arrays["lacking"].tolist() == [0.0, 3.0]
        want = gpu_grids.reference(parts * 3, "rbf", "median")
        assert want.arrays["lacking"].tolist() == [0.0, 3.0]

    @pytest.mark.parametrize(("bandwidth", "says"), [(1e-3, "too small"), (1e6, "too large")])
    def test_bandwidths_that_tell_no_rows_apart(self, bandwidth: float, says: str) -> None:
        table = fed(parts_of()[1:2], "rbf", bandwidth).table("test")
        found = table.problems(gpu_grids.kernel_of("rbf", bandwidth), "unbiased")
        assert len(found) == len(grids.WIDTHS_X) + len(grids.WIDTHS_Y)
        assert all(says in text for text in found.values())

    @pytest.mark.parametrize(
        ("kernel", "width", "precision", "value"),
        [
            ("linear", None, "high", np.nan),
            ("linear", None, "exact", np.inf),
            ("rbf", "median", "fast", -np.inf),
            ("rbf", 3.0, "high", np.nan),
        ],
    )
    def test_the_first_row_that_is_not_finite(
        self, kernel: str, width: float | str | None, precision: str, value: float
    ) -> None:
        """It is told when the table is read, and until all is forgotten."""
        parts = parts_of("fp32", (9, 20, 4))
        parts[1][1]["in"][17, 3] = value
        parts[1][1]["in"][19, 4] = value
        parts[2][0]["z"][1, 1] = value
        made = fed(parts, kernel, width, precision=precision)
        for _ in range(2):
            with pytest.raises(ValueError, match=r"^reader: batch 2: layer y/in: has non-finite values.* in row 17$"):
                made.table("reader")
        made.reset()
        made.update("test", gpu_grids.tensors(parts[0]))
        assert made.table("test") is not None

    def test_the_first_layer_is_named(self) -> None:
        parts = parts_of("fp16", (36,))
        parts[0][0]["m"][35, 0] = np.inf
        parts[0][1]["out"][2, 0] = np.inf
        with pytest.raises(ValueError, match=r"batch 1: layer x/m: .* in row 35 \(float16 holds at most 65504"):
            fed(parts).table("test")

    def test_rows_that_wait_are_judged_too(self) -> None:
        parts = parts_of("fp32", (3, 5))
        parts[0][0]["z"][1, 0] = np.nan
        made = fed(parts[:1])
        with pytest.raises(ValueError, match=r"layer x/z: has non-finite values in rows 0\.\.2"):
            made.carry("test")
        made.update("test", gpu_grids.tensors(parts[1]))
        with pytest.raises(ValueError, match=r"batch 1: layer x/z: .* in row 1$"):
            made.table("test")

    def test_values_beyond_range(self) -> None:
        parts = [
            ({"a": 1e90 * np.random.default_rng(7).standard_normal((20, 4)), "b": parts_of()[0][0]["z"][:20]}, None)
        ]
        with pytest.raises(
            ValueError, match=r"^test: batch 1: layer x/a: kernel values overflow although the input is"
        ):
            fed(parts).table("test")

    @pytest.mark.parametrize("dtype", ["bf16", "fp32"])
    @pytest.mark.parametrize("power", [-30, 30])
    def test_data_of_any_scale(self, dtype: str, power: int) -> None:
        """Kernel values are float32, their squares need not be."""
        scale = np.float32(2.0**power)
        parts = [
            tuple({k: (v * scale).astype(cases.DTYPES[dtype]) for k, v in side.items()} for side in part)
            for part in parts_of("fp32", (30, 20))
        ]
        got = result(fed(parts, precision="high"))
        emulated = gpu_grids.lost(parts, "linear", "high")
        gpu_grids.assert_within_rounding(got, grids.minibatch(parts), emulated, f"2^{power}")


def streamed(parts: list[gpu_grids.Part], kernel: str) -> gl.LayerGrid:
    grid = gl.LayerGrid("minibatch", kernel=kernel, precision="exact", backend="cuda")
    for part in parts:
        grid.update(*({name: device.tensor(rows) for name, rows in side.items()} for side in part))
    return grid


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_the_public_grid_is_that_of_the_host(kernel: str) -> None:
    """Streams of both, with rows that wait, merged, saved and gone on with."""
    parts = parts_of(sizes=(20, 2, 20, 9))
    here, there = grids.fed(parts, kernel), streamed(parts[:3], kernel)
    other = gl.LayerGrid("minibatch", kernel=kernel, precision="exact", backend="cuda")
    other.load_state_dict(there.state_dict())
    other.merge(streamed(parts[3:], kernel))
    assert other.n == here.n
    grids.assert_same_grids(other.finalize(), here.finalize(), kernel)


def test_the_tensors_are_where_the_kernels_run() -> None:
    assert device.label() == ("cuda" if next(iter(gpu_grids.tensors(parts_of()[0]).values())).is_cuda else "interpret")
