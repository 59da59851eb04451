"""What comes in as an array: read for what its memory holds, or refused with one clear error."""

from __future__ import annotations

from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import gramless as gl
from support import bounds

X = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
Y = np.random.default_rng(1).standard_normal((50, 4)).astype(np.float32)
NO_MEMORY = r"moments: x \(\w+\) has no values in memory"


def tensor() -> torch.Tensor:
    return torch.from_numpy(X.copy())


def with_storage_of(size: int) -> torch.Tensor:
    made = tensor().clone()
    made.untyped_storage().resize_(size)
    return made


def fake() -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(50, 6)


class Raises:
    """An object of the DLPack protocol that fails in one way or another."""

    def __init__(self, device: object = (1, 0), answer: object = None) -> None:
        self.device, self.answer = device, answer

    def __dlpack_device__(self) -> object:
        if isinstance(self.device, Exception):
            raise self.device
        return self.device

    def __dlpack__(self, **_: object) -> object:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def used_capsule() -> object:
    capsule = X.__dlpack__()
    np.from_dlpack(Raises(answer=capsule))
    return capsule


class WideArray(np.ndarray):
    shape = (50, 10**6)


class WideTensor(torch.Tensor):
    shape = (50, 10**6)


class ReadsAnything:
    """An object that has every attribute, and whose every attribute fails."""

    def __getattr__(self, name: str) -> object:
        raise KeyError(name)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
class TestTensors:
    @pytest.mark.parametrize(
        "make",
        [
            lambda: with_storage_of(0),
            lambda: with_storage_of(100),
            fake,
            lambda: torch._efficientzerotensor(50, 6),
            lambda: torch.nested.nested_tensor([tensor(), tensor()]),
        ],
        ids=["freed", "shrunk", "fake", "zero", "nested"],
    )
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_without_values_in_memory(self, make: Callable[[], torch.Tensor], backend: str) -> None:
        with pytest.raises(TypeError, match=NO_MEMORY):
            gl.moments(make(), backend=backend)

    def test_jagged(self, backend: str) -> None:
        jagged = torch.nested.nested_tensor([tensor(), tensor()], layout=torch.jagged)
        with pytest.raises(TypeError, match=r"moments: expected a dense tensor for x, got layout torch.jagged"):
            gl.moments(jagged, backend=backend)

    @pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad], ids=["vmap", "grad"])
    def test_of_function_transforms(self, transform: Callable, backend: str) -> None:
        def measure(x: torch.Tensor) -> torch.Tensor:
            return x.sum() * gl.moments(x, backend=backend).trace

        with pytest.raises(TypeError, match=NO_MEMORY):
            transform(measure)(torch.stack([tensor(), tensor()]) if transform is torch.vmap else tensor())

    def test_views_of_negatives(self, backend: str) -> None:
        view = torch.complex(tensor(), -tensor()).conj().imag
        assert view.is_neg()
        want = gl.moments(X, Y, backend=backend).to_dict()
        bounds.assert_same_dicts(gl.moments(view, Y, backend=backend).to_dict(), want, "a view with the negative bit")
        stream = gl.Moments(backend=backend).update(view, Y)
        bounds.assert_same_dicts(stream.state_dict(), want, "a stream of such views")

    def test_gradients_and_parameters(self, backend: str) -> None:
        want = gl.moments(X, backend=backend).second
        for same in (tensor().requires_grad_() * 1, torch.nn.Parameter(tensor()), tensor().expand(50, 6)):
            bounds.assert_same_bits(gl.moments(same, backend=backend).second, want, type(same).__name__)

    def test_no_rows(self, backend: str) -> None:
        assert gl.Moments(backend=backend).update(torch.zeros(0, 6), torch.zeros(0, 4)).n == 0


class TestSubclasses:
    @pytest.mark.parametrize(
        "lying", [X.view(WideArray), torch.Tensor._make_subclass(WideTensor, tensor())], ids=["numpy", "torch"]
    )
    def test_memory_counts_not_what_is_said_of_it(self, lying: object) -> None:
        assert lying.shape == (50, 10**6)
        bounds.assert_same_dicts(gl.moments(lying, Y).to_dict(), gl.moments(X, Y).to_dict(), "a lying shape")

    @pytest.mark.parametrize("spec", [np.ndarray, torch.Tensor], ids=lambda spec: spec.__name__)
    def test_mocks(self, spec: type) -> None:
        with pytest.raises(TypeError, match=r"cka: expected x to be a NumPy array, .* got MagicMock"):
            gl.cka(mock.MagicMock(spec=spec), Y)


class TestStrangers:
    @pytest.mark.parametrize("kind", [np.ndarray, torch.Tensor, Raises, int], ids=lambda kind: kind.__name__)
    def test_classes(self, kind: type) -> None:
        with pytest.raises(TypeError, match=f"cka: expected x to be .*got the class {kind.__name__}"):
            gl.cka(kind, Y)

    def test_attributes_that_fail(self) -> None:
        with pytest.raises(TypeError, match=r"moments: expected x to be .*got ReadsAnything"):
            gl.moments(ReadsAnything(), Y)

    @pytest.mark.parametrize(
        "bad",
        [
            Raises(device=None),
            Raises(device=("cpu", 0)),
            Raises(device=(1,)),
            Raises(device=KeyError("device")),
            Raises(answer=None),
            Raises(answer=X),
            Raises(answer=KeyError("data")),
            Raises(answer=AttributeError("data")),
            Raises(answer=NotImplementedError("data")),
            Raises(answer=BufferError("two\nlines")),
            Raises(answer=used_capsule()),
        ],
    )
    def test_dlpack_that_fails(self, bad: Raises) -> None:
        with pytest.raises(TypeError, match=r"^cka: cannot read x \(Raises\) through DLPack: .+$") as caught:
            gl.cka(bad, Y)
        assert "\n" not in str(caught.value)


class TestOtherArguments:
    @pytest.mark.parametrize(
        ("bad", "got"),
        [
            (np.zeros(6, np.complex64), "dtype complex64"),
            ("pivot", "dtype <U5"),
            ([None] * 6, "dtype object"),
            ([True] * 6, "dtype bool"),
            ([[1.0], [1.0, 2.0]], "list"),
        ],
        ids=["complex", "text", "objects", "truths", "ragged"],
    )
    def test_pivots(self, bad: object, got: str) -> None:
        with pytest.raises(TypeError, match=f"^moments: expected pivot_x to be an array of real numbers, got {got}$"):
            gl.moments(X, pivot_x=bad)

    def test_pivots_of_any_real_kind(self) -> None:
        want = gl.moments(X, pivot_x=np.ones(6)).second
        for same in ([1] * 6, torch.ones(6, requires_grad=True), np.ones(6, np.float16)):
            bounds.assert_same_bits(gl.moments(X, pivot_x=same).second, want, type(same).__name__)

    def test_pivot_is_copied(self) -> None:
        pivot = np.zeros(6)
        state = gl.moments(X, pivot_x=pivot)
        pivot[:] = 1.0
        assert not state.pivot.any()

    @pytest.mark.parametrize("bad", [["biased"], np.array(["biased", "unbiased"]), None, b"biased", 3], ids=repr)
    def test_words(self, bad: object) -> None:
        for name, first in (("estimator", "unbiased"), ("kernel", "linear"), ("backend", "auto")):
            text = f"^cka: expected {name} to be one of '{first}', .*, got {type(bad).__name__}$"
            with pytest.raises(TypeError, match=text):
                gl.cka(X, Y, **{name: bad})

    def test_counts_beyond_every_machine(self) -> None:
        with pytest.raises(ValueError, match=r"^set_num_threads: expected count below 2\^63"):
            gl.set_num_threads(10**30)

    def test_advice_on_memory(self) -> None:
        text = r"bytes; average over batches, with LayerGrid\(mode='minibatch'\) or cka_matrix\(batch_size=\.\.\.\), or"
        with pytest.raises(MemoryError, match=rf"LayerGrid\.update: this grid needs .* max_bytes is 1,000 {text}"):
            gl.LayerGrid(max_bytes=1000).update([X], [Y])
        # what the advice names is there
        assert gl.LayerGrid(mode="minibatch").update([X], [Y]).n == len(X)
        assert gl.cka_matrix([X], [Y], batch_size=25).n == len(X)
