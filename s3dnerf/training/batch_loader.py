"""Loading of batches by worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset

from s3dnerf.data.batch import Batch
from s3dnerf.data.dataset import TalkingFaceDataset
from s3dnerf.errors import UserError
from s3dnerf.interruption import ignore_signals


def load_batches(data: TalkingFaceDataset, numbers: range, workers: int, pin_memory: bool) -> Iterator[Batch]:
    """Yield the batches of these numbers, prefetched by worker processes.

    Args:
        data: the batches.
        numbers: which of them.
        workers: number of processes; 0 makes the batches in this one.
        pin_memory: whether they are put into pinned memory, for a GPU.

    Raises:
        UserError: a batch cannot be made.
    """
    loader = DataLoader(
        ErrorCatchingDataset(data),
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_keep,
        worker_init_fn=_leave_signals,
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch


class ErrorCatchingDataset(Dataset[Batch | UserError]):
    """A dataset that returns a UserError instead of a batch, for the main process to raise.

    PyTorch would rebuild an error raised in a worker process from its text alone, as a RuntimeError.
    """

    def __init__(self, data: TalkingFaceDataset) -> None:
        self.data = data

    def __getitem__(self, step: int) -> Batch | UserError:
        try:
            return self.data[step]
        except UserError as error:
            return error


def _leave_signals(worker: int) -> None:
    # A terminal or a scheduler signals all processes of a group. The main process decides when its workers end.
    ignore_signals()


def _keep(batch: Any) -> Any:
    return batch
