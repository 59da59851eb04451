"""The full pass over pairs of rows: the same bits however it is run, cut off and taken up again; its checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gramless as gl
from gramless import _core, ops
from gramless.ops import backends as ops_backends
from gramless.similarity import gram_sums_pass
from support import backends, bounds, cases, grams, memory
from support.backends import Backend

BLOCK = 16
STRIPS = 4
X, Y = grams.SMALL.arrays("fp32")
RBF = {"kernel": "rbf", "bandwidth": ["median", 2.0]}


@pytest.fixture
def short_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows make several strips."""
    monkeypatch.setattr(ops_backends, "gram_block_rows", lambda *_: BLOCK)


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, BaseException], list[int]]:
    """Let the pass fail in one of its strips, once; the list holds the strips that were begun."""

    def install(strip: int, failure: BaseException) -> list[int]:
        kernel, begun, failures = ops.gram_sums, [], [failure]

        def failing(*arrays: object, pairs: np.ndarray, **keywords: object) -> gl.GramState:
            begun.append(int(pairs[0, 0]))
            if begun[-1] == strip and failures:
                raise failures.pop()
            return kernel(*arrays, pairs=pairs, **keywords)

        monkeypatch.setattr(ops, "gram_sums", failing)
        return begun

    return install


def assert_same(got: gl.GramState, want: gl.GramState, what: str) -> None:
    bounds.assert_same_dicts(got.to_dict(), want.to_dict(), what)


@pytest.mark.usefixtures("short_strips")
class TestPass:
    @pytest.mark.parametrize("kernel", grams.KERNELS)
    def test_is_gram_sums(self, backend: Backend, kernel: str) -> None:
        given = {"kernel": kernel, "degree": 2, "coef0": 0.5, "backend": backend.name}
        widths = [3.0, 5.0] if kernel in grams.WITH_WIDTH else None
        want = gl.gram_sums(X, Y, **given, bandwidth_x=widths, bandwidth_y=widths)
        got = gl.GramSums(X, Y, **given, bandwidth=widths).run()
        assert got.complete
        for key, value in want.to_dict().items():
            if np.ndim(value) and value.dtype == np.float64:
                scale = np.full(value.shape, np.abs(value).max())
                bounds.assert_within_algebra(got.to_dict()[key], value, scale, key)

    def test_however_it_is_run(self, backend: Backend, tmp_path: Path) -> None:
        want = gl.GramSums(X, Y, **RBF, backend=backend.name).run()
        stream = gl.GramSums(X, Y, **RBF, backend=backend.name)
        for done in range(STRIPS):
            assert (stream.strips_done, stream.strips, stream.n) == (done, STRIPS, len(X))
            with pytest.raises(ValueError, match=rf"GramSums\.finalize: {done} of 4 strips are done, run the others"):
                stream.finalize()
            assert stream.update() is stream
        assert_same(stream.finalize(), want, "strip by strip")
        assert_same(stream.update().run(), want, "after the end")
        assert stream.nbytes == want.nbytes
        for name, array in (("x", X), ("y", Y)):
            np.save(tmp_path / f"{name}.npy", array)
        mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy"]
        checkpoint = tmp_path / "pass.npz"
        assert_same(gl.GramSums(*mapped, **RBF, backend=backend.name).run(), want, "memory-mapped")
        assert_same(gl.GramSums(X, Y, **RBF, backend=backend.name, checkpoint=checkpoint).run(), want, "checkpoint")
        tensors = [backends.as_torch(a) for a in (X, Y)]
        assert_same(gl.GramSums(*tensors, **RBF, backend=backend.name).run(), want, "torch")

    def test_cka_is_this_pass(self, backend: Backend) -> None:
        got = gl.cka(X, Y, kernel="laplacian", bandwidth=3.0, backend=backend.name)
        assert got == gl.cka(gl.GramSums(X, Y, kernel="laplacian", bandwidth=3.0, backend=backend.name).run())

    def test_x_alone(self) -> None:
        alone, both = gl.GramSums(X, **RBF).run(), gl.GramSums(X, Y, **RBF).run()
        assert alone.y is None
        for key, value in alone.x.arrays().items():
            bounds.assert_same_bits(value, both.x.arrays()[key], key)

    def test_bandwidths_are_kept_with_their_rules(self) -> None:
        stream = gl.GramSums(X, Y, kernel="rbf", bandwidth=["median", "kornblith", 2.0], bandwidth_scale=0.5)
        for found, array in ((stream.bandwidth_x, X), (stream.bandwidth_y, Y)):
            assert found == tuple(gl.bandwidth(array, rule, scale=0.5) for rule in ("median", "kornblith", 2.0))
        state = stream.run()
        assert list(state.x.bandwidth) == [found.value for found in stream.bandwidth_x]
        assert gl.GramSums(X, Y, kernel="rbf").bandwidth_x == (gl.bandwidth(X),)
        assert gl.GramSums(X, Y, kernel="distance").bandwidth_x == ()
        assert gl.GramSums(X, kernel="rbf").bandwidth_y == ()

    def test_progress(self, capsys: pytest.CaptureFixture[str]) -> None:
        gl.GramSums(X, Y, **RBF).run()
        assert capsys.readouterr() == ("", "")
        gl.GramSums(X, Y, **RBF, progress=True).run()
        assert "100%" in capsys.readouterr().err

    def test_a_failure_loses_nothing(self, cut_off: Callable) -> None:
        want = gl.GramSums(X, Y, **RBF).run()
        begun = cut_off(2, ValueError("in the middle"))
        stream = gl.GramSums(X, Y, **RBF)
        with pytest.raises(ValueError, match="in the middle"):
            stream.run()
        assert stream.strips_done == 2
        assert_same(stream.run(), want, "run again")
        assert begun == [0, 1, 2, 2, 3]


@pytest.mark.usefixtures("short_strips")
class TestCheckpoint:
    @pytest.mark.parametrize("strip", range(1, STRIPS))
    @pytest.mark.parametrize("failure", [KeyboardInterrupt(), MemoryError(), ValueError("bad")], ids=repr)
    def test_goes_on_with_the_same_bits(
        self, backend: Backend, cut_off: Callable, tmp_path: Path, strip: int, failure: BaseException
    ) -> None:
        given = RBF | {"backend": backend.name, "checkpoint": tmp_path / "pass.npz"}
        want = gl.GramSums(X, Y, **RBF, backend=backend.name).run()
        begun = cut_off(strip, failure)
        with pytest.raises(type(failure)):
            gl.GramSums(X, Y, **given).run()
        again = gl.GramSums(X, Y, **given)
        assert again.strips_done == strip
        assert_same(again.run(), want, "resumed")
        assert begun == [*range(strip + 1), *range(strip, STRIPS)]
        # and once it is complete, nothing is left to do
        assert_same(gl.GramSums(X, Y, **given).run(), want, "complete")
        assert len(begun) == STRIPS + 1
        assert [path.name for path in tmp_path.iterdir()] == ["pass.npz"]

    def test_cut_off_several_times(self, cut_off: Callable, tmp_path: Path) -> None:
        given = RBF | {"checkpoint": str(tmp_path / "pass.npz")}
        want = gl.GramSums(X, Y, **RBF).run()
        for strip in (1, 2, 3):
            cut_off(strip, KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                gl.GramSums(X, Y, **given).run()
        assert_same(gl.GramSums(X, Y, **given).run(), want, "resumed thrice")

    def test_written_on_the_way(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """A process that is killed has no time to write."""
        path = tmp_path / "pass.npz"
        for seconds, expected in ((0.0, [1, 2, 3, 4]), (1e9, [0, 0, 0, 4])):
            monkeypatch.setattr(gram_sums_pass, "SAVE_SECONDS", seconds)
            stream = gl.GramSums(X, Y, **RBF, checkpoint=path)
            found = []
            for _ in range(STRIPS):
                stream.update()
                found.append(gl.GramSums(X, Y, **RBF, checkpoint=path).strips_done)
            assert found == expected
            path.unlink()

    def test_a_disk_that_is_full_leaves_the_old_file(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        path = tmp_path / "pass.npz"
        monkeypatch.setattr(gram_sums_pass, "SAVE_SECONDS", 0.0)
        stream = gl.GramSums(X, Y, **RBF, checkpoint=path).update()
        before = path.read_bytes()

        def savez(file: object, **arrays: object) -> None:
            file.write(b"half of it")
            raise OSError("no space left on device")

        with monkeypatch.context() as full:
            full.setattr(np, "savez", savez)
            with pytest.warns(RuntimeWarning, match="GramSums: the checkpoint .* cannot be written: no space left"):
                stream.update()
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["pass.npz"]
        assert_same(stream.run(), gl.GramSums(X, Y, **RBF).run(), "after the disk was full")

    def test_of_memory_mapped_files(self, cut_off: Callable, tmp_path: Path) -> None:
        np.save(tmp_path / "x.npy", X)
        cut_off(2, KeyboardInterrupt())
        given = RBF | {"checkpoint": tmp_path / "pass.npz"}
        with pytest.raises(KeyboardInterrupt):
            gl.GramSums(np.load(tmp_path / "x.npy", mmap_mode="r"), Y, **given).run()
        # the same values, wherever they lie
        again = gl.GramSums(np.asfortranarray(X), backends.as_torch(Y), **given)
        assert again.strips_done == 2
        assert_same(again.run(), gl.GramSums(X, Y, **RBF).run(), "from other memory")


@pytest.mark.usefixtures("short_strips")
class TestOtherCheckpoints:
    @pytest.fixture
    def path(self, tmp_path: Path, cut_off: Callable) -> Path:
        """A checkpoint of two strips."""
        path = tmp_path / "pass.npz"
        cut_off(2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            gl.GramSums(X, Y, **RBF, checkpoint=path).run()
        return path

    def refuses(self, path: Path, text: str, x: np.ndarray = X, y: np.ndarray | None = Y, **other: object) -> None:
        before = path.read_bytes()
        with pytest.raises(ValueError, match=re.escape(text)) as caught:
            gl.GramSums(x, y, **RBF | other, checkpoint=path)
        assert str(caught.value).startswith("GramSums: ")
        assert str(path) in str(caught.value)
        assert path.read_bytes() == before

    @pytest.mark.parametrize("row", [0, 31, 59])
    def test_other_data(self, path: Path, row: int) -> None:
        """One value is enough, wherever it is."""
        other = X.copy()
        other[row, 5] = np.nextafter(other[row, 5], np.float32(np.inf))
        self.refuses(path, "is of other data (x); give another path, or remove it", x=other)
        self.refuses(path, "is of other data (x, y)", x=other, y=Y[::-1])
        self.refuses(path, "is of other data (other arrays)", y=None)
        self.refuses(path, "is of other data (x, y)", x=X[:-1], y=Y[:-1])
        self.refuses(path, "is of other data (x)", x=X.astype(np.float64))

    def test_other_parameters(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses(path, "is of other parameters (kernel rbf, not laplacian)", kernel="laplacian")
        self.refuses(path, "is of other parameters (bandwidth_x [", bandwidth=["median", 3.0])
        self.refuses(path, "is of other parameters (bandwidth_x [", bandwidth_scale=0.5)
        self.refuses(path, "is of other parameters (degree 3, not 2)", degree=2)
        self.refuses(path, "is of other parameters (backend cpu, not reference", backend="reference")
        monkeypatch.setattr(ops_backends, "gram_block_rows", lambda *_: 20)
        self.refuses(path, "is of other parameters (block_rows 16, not 20)")

    def test_another_version(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as later:
            later.setattr(gram_sums_pass, "__version__", "99.0")
            self.refuses(path, "is of other parameters (version ")
        monkeypatch.setattr(gram_sums_pass, "FORMAT", "gramless.gram_pass/9")
        self.refuses(path, "of format 'gramless.gram_pass/9', got 'gramless.gram_pass/1'")

    def test_another_instruction_set(self, path: Path) -> None:
        """Its sums differ in their last bits, and the promise is the same bits."""
        written = _core.isa_level()
        for level in set(backends.isa_levels()) - {written}:
            with backends.isa(level):
                self.refuses(path, f"is of other parameters (instruction set {written}, not {level}")

    def test_cut_off_files(self, path: Path) -> None:
        whole = path.read_bytes()
        for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1):
            path.write_bytes(whole[:length])
            self.refuses(path, "cannot read the checkpoint")

    def test_files_with_wrong_bytes(self, path: Path) -> None:
        """Archives carry checksums, so that a changed bit is seen before it is summed."""
        whole = path.read_bytes()
        for place in range(60, len(whole), len(whole) // 40):
            spoilt = bytearray(whole)
            spoilt[place] ^= 0xFF
            path.write_bytes(bytes(spoilt))
            try:
                found = gl.GramSums(X, Y, **RBF, checkpoint=path)
            except ValueError:
                self.refuses(path, "the checkpoint")
                continue
            # dates and the like say nothing of the sums
            assert_same(found.run(), gl.GramSums(X, Y, **RBF).run(), f"byte {place}")

    @pytest.mark.parametrize("content", [b"", b"plain text\n", b"PK\x03\x04 not a zip file", b"\x93NUMPY"], ids=repr)
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other.npz"
        path.write_bytes(content)
        self.refuses(path, "cannot read the checkpoint")

    def test_other_archives(self, tmp_path: Path) -> None:
        path = tmp_path / "other.npz"
        np.savez(path, x=X)
        self.refuses(path, "of format 'gramless.gram_pass/1', got 'none'")
        np.save(tmp_path / "one.npy", X)
        self.refuses(tmp_path / "one.npy", "cannot read the checkpoint")
        np.savez(path, **{"pass.format": np.array([{"an": "object"}], dtype=object)})
        self.refuses(path, "cannot read the checkpoint")

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("pass.strips", 1),
            ("pass.strips", 0),
            ("pass.strips", 5),
            ("pass.strips", -1),
            ("pass.strips", "two"),
            ("pairs", 3),
            ("n", 59),
            ("product", None),
            ("product", np.zeros(3)),
            ("x.rows", np.zeros((2, 60), np.float32)),
            ("x.rows", np.zeros((2, 61))),
            ("x.rows", np.full((2, 60), np.nan)),
            ("y.square", None),
            ("kernel", 7),
            ("surplus", np.zeros(2)),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_damaged_contents(self, path: Path, key: str, value: object) -> None:
        with np.load(path) as archive:
            arrays = {name: archive[name] for name in archive.files} | {key: value}
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        self.refuses(path, "is damaged")


class TestErrors:
    @pytest.mark.parametrize(
        ("error", "text", "keywords"),
        [
            (ValueError, "GramSums: expected kernel to be one of", {"kernel": "gauss"}),
            (ValueError, "GramSums: kernel='distance' has no bandwidth", {"kernel": "distance", "bandwidth": 1.0}),
            (ValueError, "GramSums: expected at least one bandwidth, got none", {"bandwidth": []}),
            (ValueError, "GramSums: expected bandwidth above 0, got 0", {"bandwidth": [1.0, 0]}),
            (ValueError, "GramSums: expected bandwidth to be 'median' or 'kornblith'", {"bandwidth": "mean"}),
            (TypeError, "GramSums: expected bandwidth to be a number, got dict", {"bandwidth": {"x": 1.0}}),
            (TypeError, "GramSums: expected bandwidth to be a number, got list", {"bandwidth": [[1.0], [1.0, 2.0]]}),
            (ValueError, "GramSums: expected bandwidth_scale above 0", {"bandwidth_scale": 0.0}),
            (ValueError, "GramSums: expected degree of at least 1", {"degree": 0}),
            (ValueError, "expected backend to be one of", {"backend": "tpu"}),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_arguments(self, error: type[Exception], text: str, keywords: dict) -> None:
        with pytest.raises(error, match=re.escape(text)):
            gl.GramSums(X, Y, **{"kernel": "rbf"} | keywords)

    def test_arrays(self) -> None:
        with pytest.raises(ValueError, match="GramSums: expected x and y with the same number of rows"):
            gl.GramSums(X, Y[:5], kernel="rbf")
        with pytest.raises(ValueError, match="x has non-finite values in rows"):
            gl.GramSums(np.full((9, 2), np.nan), kernel="distance").run()

    def test_paths(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"GramSums: the folder of the checkpoint .* does not exist"):
            gl.GramSums(X, Y, kernel="rbf", checkpoint=tmp_path / "missing" / "pass.npz")
        with pytest.raises(ValueError, match="GramSums: expected a file for the checkpoint, got the folder"):
            gl.GramSums(X, Y, kernel="rbf", checkpoint=tmp_path)


def test_several_strips_of_many_rows() -> None:
    """Blocks of the size that they have by default, at every number of threads."""
    x, y = cases.Case("strips", "", 7000, 5, 3).arrays("fp32")
    results = []
    for threads in (1, 2, 7):
        with backends.threads(threads):
            stream = gl.GramSums(x, y, kernel="rbf", bandwidth=[1.0, 4.0])
            assert stream.strips == 3
            results.append(stream.run())
    for result in results[1:]:
        assert_same(result, results[0], "threads")
    wide = gl.gram_sums(*(a.astype(np.float64) for a in (x, y)), kernel="rbf", bandwidth_x=4.0, bandwidth_y=4.0)
    bounds.assert_relative(gl.cka(results[0].select(1)), gl.cka(wide), bounds.FIRST_FP32)


def test_a_signal_in_the_middle(tmp_path: Path) -> None:
    """Ctrl-C after the first strip: the file holds it, and another process goes on from there."""
    program = f"""
import os, signal, threading, time
import numpy as np
import gramless as gl
from gramless.ops import backends
backends.gram_block_rows = lambda *_: 500
x = np.random.default_rng(0).standard_normal((20_000, 8)).astype(np.float32)
stream = gl.GramSums(x, kernel="rbf", bandwidth=2.0, checkpoint={str(tmp_path / "pass.npz")!r})
before = stream.strips_done
def interrupt():
    while stream.strips_done == before:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGINT)
if before == 0:
    threading.Thread(target=interrupt, daemon=True).start()
try:
    print("sum", float(stream.run().x.square[0]).hex(), "from", before)
except KeyboardInterrupt:
    print("interrupted after", stream.strips_done)
"""
    done = int(memory.run(program).split("interrupted after")[1])
    assert 0 < done < 40
    resumed = memory.run(program).split()
    assert resumed[2:] == ["from", str(done)]
    (tmp_path / "pass.npz").unlink()
    whole = memory.run(program.replace("if before == 0", "if False")).split()
    assert whole[:2] == resumed[:2]
