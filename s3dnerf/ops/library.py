"""Definition of operators for PyTorch, as by ``torch.library.custom_op``.

The first call of an operator of ``custom_op`` imports all of PyTorch's compiler, which takes about as long as importing
PyTorch. Operators that are defined here do not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY = torch.library.Library("s3dnerf", "FRAGMENT")


class CustomOperator:
    """An operator with a kernel for all devices, which PyTorch can differentiate and compile.

    Args:
        name: the operator, as ``torch.ops.s3dnerf.<name>``.
        schema: its arguments and results, in the language of PyTorch. Results must not share memory with arguments.
        kernel: computes it.
    """

    def __init__(self, name: str, schema: str, kernel: Callable[..., Any]) -> None:
        self.name = f"s3dnerf::{name}"
        _LIBRARY.define(f"{name}{schema}")
        _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
        self.overload: Any = getattr(torch.ops.s3dnerf, name).default
        """The operator itself, for ``torch.library.opcheck``."""
        self._backward: Callable[..., Any] | None = None
        self._setup_context: Callable[..., Any] | None = None
        torch.library.register_autograd(
            self.name, self._differentiate, setup_context=self._remember_inputs, lib=_LIBRARY
        )

    def __call__(self, *arguments: Any) -> Any:
        """Run the operator."""
        return self.overload(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> None:
        """Register, as a decorator, the function that returns empty results of the right shapes and types."""
        torch.library.register_fake(self.name, function, lib=_LIBRARY)

    def register_autograd(self, backward: Callable[..., Any], setup_context: Callable[..., Any]) -> None:
        """Register the backward pass and what it remembers; see ``torch.library.register_autograd``."""
        self._backward, self._setup_context = backward, setup_context

    def _differentiate(self, ctx: Any, *gradients: Any) -> Any:
        if self._backward is None:
            raise RuntimeError(f"{self.name} has no backward pass")
        return self._backward(ctx, *gradients)

    def _remember_inputs(self, ctx: Any, inputs: Any, output: Any) -> None:
        if self._setup_context is not None:
            self._setup_context(ctx, inputs, output)


def define_operator(name: str, schema: str) -> Callable[[Callable[..., Any]], CustomOperator]:
    """Return a decorator that makes an operator of its kernel; see :class:`CustomOperator`."""
    return lambda kernel: CustomOperator(name, schema, kernel)
