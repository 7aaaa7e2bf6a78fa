"""The processes of a training run: one, or several on one or more machines, started by accelerate or torchrun.

Gradients are averaged by DistributedDataParallel. The few other numbers that processes exchange, such as signals, are
on the CPU and go through gloo. It notices at once when a process has ended, and does not wait for the GPUs.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from s3dnerf.device import choose_device
from s3dnerf.errors import UserError, first_line

TIMEOUT = timedelta(hours=1)
"""Longest wait for another process, which may be validating or training the mouth interior."""
FREEING_SECONDS = 0.2
"""Time at the end in which the threads of gloo free what they hold."""
FAILED = "s3dnerf_failed"
"""Key under which the process that fails first registers."""


class Processes:
    """This process and the others of a training run."""

    def __init__(self, device: str = "auto", argument: str = "train.device") -> None:
        """Join the other processes, if a launcher has started several.

        Args:
            device: "auto", "cpu" or "cuda". With several processes, each takes the GPU of its number on its machine.
            argument: the argument that gave the device, for messages.

        Raises:
            UserError: the device cannot be used, or the other processes cannot be reached.
        """
        number = os.environ.get("LOCAL_RANK")
        self.launched = number is not None
        """Whether a launcher started this process. Launchers repeat the signals that processes get from a terminal."""
        options: dict[str, Any] = {"timeout": TIMEOUT}
        if number is not None and device != "cpu" and torch.cuda.is_available():
            device = f"cuda:{int(number) % torch.cuda.device_count()}"
            options["backend"] = "cpu:gloo,cuda:nccl"
        self.device = choose_device(device, argument)
        try:
            state = PartialState(cpu=self.device.type == "cpu", **options)
        except (RuntimeError, ValueError) as error:
            hint = "Start the same number of processes on every machine, and check address and port of the first."
            raise UserError("processes", f"cannot meet ({first_line(error)})", hint) from error
        self.index: int = state.process_index
        self.count: int = state.num_processes
        self.is_main: bool = state.is_main_process

    def write(self, text: str) -> None:
        """Print a line above the progress bar of the main process."""
        if self.is_main:
            tqdm.write(text)

    def wrap(self, module: nn.Module, find_unused: bool = False) -> nn.Module:
        """Return the module, with gradients that are averaged over all processes.

        Args:
            module: a module whose call computes a loss.
            find_unused: whether some losses do not depend on all parameters.
        """
        if self.count == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
            return module
        with warnings.catch_warnings():
            # PyTorch 2.13 has another name for broadcast_buffers, which earlier versions do not know.
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=find_unused)

    def maximum(self, value: int) -> int:
        """Return the maximum of a number over all processes."""
        if self.count == 1:
            return value
        shared = torch.tensor(value)
        distributed.all_reduce(shared, distributed.ReduceOp.MAX)
        return int(shared)

    def gather(self, value: Any) -> list[Any]:
        """Return the value of every process, in order."""
        values = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value)
        return values

    def share(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of the main process on every process, on the CPU."""
        if self.count == 1:
            return tensors
        (layout,) = self.gather([(name, x.shape, x.dtype) for name, x in tensors.items()] if self.is_main else None)[:1]
        shared = {}
        for name, shape, dtype in layout:
            value = tensors[name].detach().cpu().contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
            if value.numel():
                distributed.broadcast(value.view(-1).view(torch.uint8), 0)
            shared[name] = value
        return shared


def accumulate(objective: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Return the context of one of several backward passes; gradients are averaged over processes in the last one."""
    if is_last or not isinstance(objective, DistributedDataParallel):
        return nullcontext()
    return cast(AbstractContextManager[None], objective.no_sync())


class Objective(nn.Module):
    """A model whose call computes a loss, as DistributedDataParallel needs it."""

    def __init__(self, model: nn.Module, compute_loss: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.compute_loss = model, compute_loss

    def forward(self, *arguments: Any) -> Any:
        """Return what ``compute_loss`` returns."""
        return self.compute_loss(*arguments)


def is_main_process() -> bool:
    """Tell whether this is the process that writes."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


@contextmanager
def leave_processes() -> Iterator[None]:
    """Wait for the other processes at the end of the block, and disconnect from them.

    If a process ends with an error, the others lose it and end too. Only the first one reports its error; the others
    exit silently with the same code.

    Raises:
        UserError: another process has ended, or the block raises a UserError.
    """
    try:
        yield
        if distributed.is_initialized():
            # A process may abort while it exits. The launcher then ends the others, and the first may still be saving.
            distributed.all_reduce(torch.zeros(()))
            # Threads of gloo, which outlive the group, need the interpreter to free the tensors of Python that they
            # hold. If it is exiting by then, they abort the process.
            time.sleep(FREEING_SECONDS)
    except (UserError, RuntimeError) as error:
        explained = _explain_loss(error)
        if not isinstance(explained, UserError):
            raise
        if not _fails_first():
            raise SystemExit(2) from error
        raise explained from error
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _explain_loss(error: UserError | RuntimeError) -> UserError | RuntimeError:
    """Return a UserError if an error means that another process has ended, and otherwise the error."""
    # gloo raises plain RuntimeErrors, which begin with the path of a source file.
    if not distributed.is_initialized() or not (isinstance(error, distributed.DistError) or "gloo/" in str(error)):
        return error
    subject = f"process {distributed.get_rank()} of {distributed.get_world_size()}"
    hint = "If no other message tells why it ended, it was killed. Continue from the last checkpoint: --resume."
    detail = re.sub(r"^\[\S+\] ", "", first_line(error)).partition(". ")[0]
    return UserError(subject, f"has lost another process ({detail})", hint)


def _fails_first() -> bool:
    if not distributed.is_initialized():
        return True
    try:
        return distributed.distributed_c10d._get_default_store().add(FAILED, 1) == 1
    except RuntimeError:
        return True  # the process that holds the store is gone
