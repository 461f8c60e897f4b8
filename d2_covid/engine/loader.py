"""Which samples make a batch, and how they are read: a pure function of the seed and the iteration."""

import logging
import signal
import sys
from types import TracebackType
from typing import Any, Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.data import DatasetFromList
from detectron2.utils import comm

from ..errors import UserError
from .seeding import derive_seed
from .transfer import PackedBatch, pack

logger = logging.getLogger(__name__)

Mapper = Callable[[dict], Any]
EpochOrder = Callable[[int], Sequence[int]]
"""From the number of an epoch to the indices of its samples, in order."""

_SECONDS_AFTER_SIGTERM = 30


def shuffled_order(size: int, seed: int) -> EpochOrder:
    """Every epoch is a permutation of ``range(size)`` of its own."""

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(derive_seed(seed, "epoch", epoch)).permutation(size)

    return order


class BatchPositions(torchdata.Sampler):
    """For each iteration, the samples of this process: lists of ``(index, position)``.

    Positions count the samples of all processes since iteration 0: iteration ``i`` of a run with batches of B takes
    positions ``i * B`` to ``i * B + B - 1``, rank r the r-th share of them. Epochs follow each other without a gap.

    Args:
        size: samples in an epoch.
        batch_size: samples of all processes together in one iteration.
        order: which sample stands where in an epoch.
        start_iter, max_iter: iterations to yield, the last one excluded.
        rank, world_size: this process among all.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        order: EpochOrder,
        *,
        start_iter: int = 0,
        max_iter: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {batch_size} can't be shared evenly by {world_size} processes; "
                f"use a multiple of {world_size}."
            )
        self._size, self._batch_size, self._order = size, batch_size, order
        self._iterations = range(start_iter, max_iter)
        share = batch_size // world_size
        self._share = range(rank * share, (rank + 1) * share)

    def __len__(self) -> int:
        return len(self._iterations)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, indices = -1, ()
        for iteration in self._iterations:
            batch = []
            for offset in self._share:
                position = iteration * self._batch_size + offset
                if position // self._size != epoch:
                    epoch = position // self._size
                    indices = self._order(epoch)
                batch.append((int(indices[position % self._size]), position))
            yield batch


class SeededSamples(torchdata.Dataset):
    """Mapped samples, asked for by ``(index, position)``; each is handed to the mapper with ``sample_seed``.

    A :class:`UserError` of the mapper is returned instead of raised: across the border of a worker process an
    exception turns into the text of a traceback.
    """

    def __init__(self, dicts: Sequence[dict], mapper: Mapper, seed: int) -> None:
        self._dicts, self._mapper, self._seed = dicts, mapper, seed

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, key: tuple[int, int]) -> Any:
        index, position = key
        sample = dict(self._dicts[index], sample_seed=derive_seed(self._seed, "sample", position))
        try:
            return self._mapper(sample)
        except UserError as error:
            return error


class Batches:
    """A ``DataLoader`` of :class:`SeededSamples` that raises in this process what went wrong in a worker.

    Args:
        loader: of lists of samples, or of :class:`.transfer.PackedBatch`.
        device: where the tensors of packed samples go.
    """

    def __init__(self, loader: torchdata.DataLoader, device: torch.device | None = None) -> None:
        self._loader, self._device = loader, device

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[list]:
        for batch in self._loader:
            if isinstance(batch, PackedBatch):
                yield batch.unpack(self._device)
                continue
            for sample in batch:
                if isinstance(sample, UserError):
                    raise sample
            yield batch


def train_batches(
    dicts: Sequence[dict],
    mapper: Mapper,
    order: EpochOrder,
    *,
    batch_size: int,
    seed: int,
    start_iter: int,
    max_iter: int,
    num_workers: int,
    device: torch.device | None = None,
) -> Batches:
    """Batches of this process for ``start_iter`` to ``max_iter - 1``; ``batch_size`` counts all processes.

    With a GPU as ``device`` the samples come with their tensors there.
    """
    positions = BatchPositions(
        len(dicts),
        batch_size,
        order,
        start_iter=start_iter,
        max_iter=max_iter,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
    )
    return _batches(dicts, mapper, seed, positions, num_workers, device)


def eval_batches(
    dicts: Sequence[dict], mapper: Mapper, *, seed: int, num_workers: int, share: range | None = None
) -> Batches:
    """Batches of one sample, those of ``share`` in order; None: of :func:`eval_share`."""
    share = eval_share(len(dicts)) if share is None else share
    return _batches(dicts, mapper, seed, [[(index, index)] for index in share], num_workers)


def eval_share(size: int) -> range:
    """The samples that this process evaluates, of ``size``; the processes' shares are contiguous and apart."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    return range(size * rank // world_size, size * (rank + 1) // world_size)


def _batches(
    dicts: Sequence[dict],
    mapper: Mapper,
    seed: int,
    batch_sampler: Iterable[list[tuple[int, int]]],
    num_workers: int,
    device: torch.device | None = None,
) -> Batches:
    # One serialized copy serves all workers; see DatasetFromList.
    samples = SeededSamples(DatasetFromList(list(dicts), copy=False), mapper, seed)
    to_gpu = device is not None and device.type == "cuda"
    loader = torchdata.DataLoader(
        samples,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=pack if to_gpu else list,
        pin_memory=to_gpu,
        worker_init_fn=_begin_worker,
    )
    return Batches(loader, device)


def _begin_worker(_: int) -> None:
    cv2.setNumThreads(0)  # as PyTorch's own in a worker: there are as many workers as cores are meant for
    # What ends a run often signals all of its processes, and a reader's death is an error in the one that trains, even
    # within an update: so it leaves that one time to finish.
    if hasattr(signal, "SIGALRM"):
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: signal.alarm(_SECONDS_AFTER_SIGTERM))
    sys.excepthook = _not_of_connections


def _not_of_connections(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's ``sys.excepthook`` without what it is to hand over a batch that nobody takes any more."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)
