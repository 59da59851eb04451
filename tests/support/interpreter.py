"""Triton's interpreter without work that it does again at each call; what kernels compute is the same to the bit.

It puts its own functions in the place of all of Triton's before each launch and again before each call of a function of
the device, finds these by a search through every module, and makes a table of all types whenever it asks for one, and a
shape for each tensor. Of each sum and product of integers it computes, in ten operations, if it overflows, and does
not look at the answer: assertions of the device are off, and a GPU's compiler leaves these operations out as well.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from inspect import getmembers
from math import prod
from typing import Any

import numpy as np

from support import device


def hasten() -> None:
    """Keep what does not change; of no effect where a GPU runs the kernels."""
    if not device.has_triton() or device.label() != "interpret":
        return
    from triton import language
    from triton.language import core
    from triton.runtime import interpreter

    # of each launch that runs, the modules whose functions are replaced
    replaced: list[set[str]] = []
    launched, called = interpreter.GridExecutor.__call__, interpreter.InterpretedFunction.__call__
    number_of = cache(interpreter._get_np_dtype)

    numpy_pointer = np.dtype(np.uint64)

    @cache
    def builtins(package: Any) -> tuple[tuple[str, Any], ...]:
        # asked for the first time before any of them has another in its place
        return tuple((name, member) for name, member in getmembers(package) if core.is_builtin(member))

    def type_of(of: Any) -> Any:
        kind = of.element_ty if isinstance(of, core.block_type) else of
        return numpy_pointer if isinstance(kind, core.pointer_type) else number_of(kind)

    def patch_builtins(package: Any, builder: Any, scope: Any) -> None:
        for name, member in builtins(package):
            # a class that two modules have is met twice
            if getattr(package, name) is member:
                interpreter._patch_attr(package, name, member, builder, scope)

    @cache
    def shape_of(*lengths: int) -> tuple[Any, Any]:
        return core.constexpr(prod(lengths)), core.tuple([core.constexpr(length) for length in lengths])

    def tensor(self: Any, handle: Any, kind: Any) -> None:
        self.handle, self.type, self.dtype = handle, kind, kind.scalar
        self.numel, self.shape = shape_of(*(kind.shape if kind.is_block() else ()))

    @cache
    def modules(function: Any) -> frozenset[str]:
        """The modules of the language that a function sees, whose functions are replaced for it."""
        seen = [value for value in function.__globals__.values() if value is language or value is core]
        return frozenset(one.__name__ for one in seen)

    def launch(self: Any, *arguments: Any, **keywords: Any) -> None:
        replaced.append(set(modules(self.fn)))
        try:
            launched(self, *arguments, **keywords)
        finally:
            replaced.pop()

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        if not replaced or not modules(self.fn) <= replaced[-1]:
            if replaced:
                replaced[-1].update(modules(self.fn))
            return called(self, *arguments, **keywords)
        try:
            return self.rewrite()(*arguments, **keywords)
        except Exception as error:
            raise interpreter.InterpreterError(repr(error)) from error

    options = interpreter.interpreter_builder.options
    if not options.debug:
        interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)
    core.tensor.__init__ = tensor
    interpreter._get_np_dtype = type_of
    interpreter._patch_builtin = patch_builtins
    interpreter.GridExecutor.__call__ = launch
    interpreter.InterpretedFunction.__call__ = call
