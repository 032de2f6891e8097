"""The ranks that train a run together: processes, each with a part of every cohort, and what they tell each other.

A single process is a world of one rank, which has nobody to tell. With several, `torch.distributed` carries tensors
from rank to rank. All ranks have to call the methods that do so in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor


class OtherRankError(Exception):
    """The error that another rank has one, which says what it is."""


class World:
    """The ranks of a run, as one of them sees them.

    Args:
        rank: number of this rank, from 0.
        size: number of ranks.

    Attributes:
        seconds: seconds that this rank has spent on what ranks tell each other, waiting for others included.
        bytes: bytes of the tensors that it has told the others so far.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.seconds, self.bytes = 0.0, 0

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
        self._told(rows.nbytes, lambda: dist.all_gather_into_tensor(found, padded))
        parts = found.split(most) if most else [found] * self.size
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

    def any(self, here: bool) -> bool:
        """Return whether something is true on any rank."""
        if self.alone:
            return here
        flag = torch.tensor(float(here), device=self._device)
        self._told(flag.nbytes, lambda: dist.all_reduce(flag))
        return flag.item() > 0

    @contextmanager
    def agreeing(self) -> Iterator[None]:
        """Return a context at whose end all ranks go on, or none: an error of one is raised on all of them.

        Raises:
            OtherRankError: the error was another rank's.
        """
        problem: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, others must not wait
            problem = error
        failed = self.any(problem is not None)
        if problem:
            raise problem
        if failed:
            raise OtherRankError

    @property
    def _device(self) -> torch.device:
        """Return the device that small tensors have to be on to be told."""
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def _told(self, size: int, collective: object) -> None:
        """Call a collective operation, and count its time and bytes."""
        begun = time.perf_counter()
        collective()
        self.seconds += time.perf_counter() - begun
        self.bytes += size


ALONE = World()
"""The world of a single process."""
