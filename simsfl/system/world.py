"""The ranks that train a run together: processes, each with a part of every cohort, and what they tell each other.

A single process is a world of one rank, which has nobody to tell. With several, `torch.distributed` carries tensors
from rank to rank. All ranks have to call the methods that do so in the same order.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_NOTE_SECONDS = 5.0
"""Seconds that a rank waits for notes of others, when one of them has ended."""


class RankLostError(Exception):
    """The error that a rank has ended or cannot go on, and so the others cannot either; the message names it.

    Attributes:
        first: whether this rank is the one to say it: the one that cannot go on, or the first of those that are left.
    """

    def __init__(self, message: str, *, first: bool):
        super().__init__(message)
        self.first = first


class AgreedError(ValueError):
    """The error that all ranks raise together, and the first of them says."""


class World:
    """The ranks of a run, as one of them sees them.

    Args:
        rank: number of this rank, from 0.
        size: number of ranks.
        store: where ranks leave notes for each other, if there are several.

    Attributes:
        seconds: seconds that this rank has spent on what ranks tell each other, waiting for others included.
        bytes: bytes of the tensors that it has told the others so far.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: dist.Store | None = None):
        self.rank, self.size, self._store = rank, size, store
        self.seconds, self.bytes = 0.0, 0
        if store:
            store.set(f"process/{rank}", f"{platform.node()} {os.getpid()}")

    @property
    def alone(self) -> bool:
        """Return whether this is the only rank."""
        return self.size == 1

    def parts(self, count: int) -> list[range]:
        """Return which of `count` things each rank has: neighbours, of which the first ranks have one more if need be.

        >>> World(size=3).parts(8)
        [range(0, 3), range(3, 6), range(6, 8)]
        """
        each, more = divmod(count, self.size)
        edges = list(accumulate((each + (rank < more) for rank in range(self.size)), initial=0))
        return [range(*edges[rank : rank + 2]) for rank in range(self.size)]

    def part(self, count: int) -> range:
        """Return which of `count` things this rank has."""
        return self.parts(count)[self.rank]

    def sum_(self, *tensors: Tensor) -> None:
        """Replace tensors of the same dtype and device by their sums over all ranks, which are the same on each."""
        if self.alone or not tensors:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._told(flat.nbytes, lambda: dist.all_reduce(flat))
        for tensor, sums in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(sums.view_as(tensor))

    def gather(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """Return the rows of all ranks, in the order of the ranks.

        Args:
            rows: ``[n, ...]`` rows of this rank.
            counts: n of each rank.
        """
        if self.alone:
            return rows
        most = max(counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        found = rows.new_empty(self.size * most, *rows.shape[1:])
        parts = list(found.split(most)) if most else [found] * self.size
        if most:
            self._told(rows.nbytes, lambda: dist.all_gather(parts, padded))
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def rows(self, stack: Tensor, wanted: Tensor, count: int) -> Tensor:
        """Return rows ``[n, ...]`` of a stack whose rows are divided among the ranks, to the bit.

        Args:
            stack: ``[m, ...]`` rows of this rank, which are those of `part`.
            wanted: ``[n]`` int64 rows of all ranks' stack, on the device of the stack; the same on all ranks.
            count: number of rows of all ranks.
        """
        if self.alone:
            return stack[wanted]
        here, own = self._owned(wanted, count)
        found = stack.new_zeros(len(wanted), *stack.shape[1:])
        found[here] = stack[own]
        bits = found.view(torch.uint8) if found.numel() else found  # a number and the zeros of all other ranks
        self._told(found.nbytes, lambda: dist.all_reduce(bits))
        return found

    def put_(self, stack: Tensor, rows: Tensor, values: Tensor, count: int) -> None:
        """Write rows of a stack whose rows are divided among the ranks.

        Args:
            stack: ``[m, ...]`` rows of this rank, which are those of `part`.
            rows: ``[n]`` int64 rows of all ranks' stack; the same on all ranks.
            values: what this rank writes into its part of `rows`, ``[n', ...]``, converted to the stack's dtype.
            count: number of rows of all ranks.
        """
        rows = rows.to(stack.device)
        if not self.alone:
            values = self.gather(values, [len(part) for part in self.parts(len(rows))])
            here, rows = self._owned(rows, count)
            values = values[here.to(values.device)]
        stack.index_copy_(0, rows, values.to(stack.device, stack.dtype))

    def _owned(self, rows: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return which of some rows ``[n]`` are this rank's, bool ``[n]``, and where these are among its own rows."""
        mine = self.part(count)
        here = (rows >= mine.start) & (rows < mine.stop)
        return here, rows[here] - mine.start

    def largest(self, here: int) -> int:
        """Return the largest of a small whole number of each rank."""
        if self.alone:
            return here
        number = torch.tensor(float(here))
        self._told(number.nbytes, lambda: dist.all_reduce(number, dist.ReduceOp.MAX))
        return int(number)

    def any(self, here: bool) -> bool:
        """Return whether something is true on any rank."""
        return bool(self.largest(here))

    def speaks(self) -> bool:
        """Return whether this rank is the first to ask: of what all may have to say, it says what there is to say."""
        try:
            return self.alone or self._store.add("spoken", 1) == 1
        except RuntimeError:  # the store has ended with the rank that kept it
            return True

    def tell(self, mine: Any) -> list[Any]:
        """Return what each rank has to say, in the order of the ranks: any object that can be pickled."""
        if self.alone:
            return [mine]
        found = [None] * self.size
        self._told(0, lambda: dist.all_gather_object(found, mine))
        return found

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Return a context at whose end all ranks go on, or none: a user's mistake on one is an error on all of them.

        Raises:
            AgreedError: a rank has raised a ValueError or an OSError; the message is that of the first that did.
            ValueError: or OSError, as it was raised, where this is the only rank.
        """
        problem: ValueError | OSError | None = None
        try:
            yield
        except (ValueError, OSError) as error:
            problem = error
        if problem and self.alone:
            raise problem
        others = self.tell(problem and str(problem)) if self.any(problem is not None) else []
        for rank, text in enumerate(others):
            if text is not None:
                raise AgreedError(text if rank == 0 else f"rank {rank}: {text}") from problem

    def _told(self, size: int, collective: Callable[[], object]) -> None:
        """Call a collective operation, and count its time and bytes.

        Raises:
            RankLostError: a rank has ended.
        """
        begun = time.perf_counter()
        try:
            collective()
        except RuntimeError as error:  # of gloo or NCCL, in many words
            lost = self._lost()
            left = [rank for rank in range(self.size) if rank not in lost]
            who = " and ".join(f"rank {rank}" for rank in lost) or "a rank"
            message = f"{who} ended, and the others cannot go on without it"
            raise RankLostError(message, first=self.rank == left[0]) from error
        self.seconds += time.perf_counter() - begun
        self.bytes += size

    def _lost(self) -> list[int]:
        """Return the ranks that leave no notes, apart from those that are known to run.

        A rank that waits for this one leaves its note only once this one has ended.
        """
        notes = [f"alive/{rank}" for rank in range(self.size)]
        try:
            self._store.set(notes[self.rank], "yes")
            end = time.monotonic() + _NOTE_SECONDS
            while time.monotonic() < end and not self._store.check(notes):
                time.sleep(0.1)
            silent = [rank for rank, note in enumerate(notes) if not self._store.check([note])]
            return [rank for rank in silent if not self._runs(rank)]
        except RuntimeError:  # the store has ended with the rank that kept it
            return [0]

    def _runs(self, rank: int) -> bool:
        """Return whether the process of a rank is on this machine, and runs."""
        machine, _, process = self._store.get(f"process/{rank}").decode().rpartition(" ")
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # it is there, and somebody else's
            pass
        return machine == platform.node()


ALONE = World()
"""The world of a single process."""
