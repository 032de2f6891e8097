"""How the rows of a batch are cut into blocks for the server, and which client each row belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise


def blocks(rows_per_unit: Sequence[int], total: int, size: int | None, *, apart: bool) -> list[slice]:
    """Cut `total` rows, which are those of one direction of the loss or of two, into blocks of about equal size.

    Args:
        rows_per_unit: sizes of the units that a direction consists of; the rows of a unit stay in one block.
        total: rows of all directions together.
        size: most rows of a block, where the units allow it; None for no limit.
        apart: whether no block may have rows of two directions.

    >>> blocks([1, 1, 1, 1, 1], 10, 2, apart=True)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 7, None), slice(7, 9, None), slice(9, 10, None)]
    """
    rows, size = sum(rows_per_unit), size or total
    if not rows:
        return []
    if size >= total and not apart:
        return [slice(0, total)]
    target = -(-rows // -(-rows // size))
    edges, before = [0], 0
    for end in accumulate(rows_per_unit):
        if end - edges[-1] > target and before > edges[-1]:
            edges.append(before)
        before = end
    edges.append(rows)
    return [slice(first + start, first + end) for first in range(0, total, rows) for start, end in pairwise(edges)]


def owners(batches: Sequence[int], start: int, count: int) -> Iterator[tuple[slice, slice]]:
    """Find the clients that the rows of a block belong to.

    Args:
        batches: rows of each client in a direction of the loss, in cohort order.
        start: first row of the block, which is the first row of a client.
        count: rows of the block.

    Yields:
        For each run of clients with equally many rows: its rows, counted within the block, and its clients' positions.

    >>> list(owners([2, 2, 3], 2, 5))
    [(slice(0, 2, None), slice(1, 2, None)), (slice(2, 5, None), slice(2, 3, None))]
    """
    row = client = 0
    for batch, same in groupby(batches):
        clients = len(list(same))
        first, last = max(row, start), min(row + clients * batch, start + count)
        if first < last:
            yield (
                slice(first - start, last - start),
                slice(client + (first - row) // batch, client + (last - row) // batch),
            )
        row, client = row + clients * batch, client + clients
