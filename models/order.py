"""The order in which training meets its samples: a function of (seed, epoch, position), without any state. numpy only.

Dimensions: N rows of a dataset, B rows of a batch.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from models.data import Indices


class Draw(NamedTuple):
    """The rows of one step that one rank trains on."""

    rows_B: Indices
    """Of the dataset."""
    positions_B: Indices
    """In the endless row of draws: with the seed, all that augmentation may depend on."""


class Order(Protocol):
    """What decides the order of samples; `models.train.Recipe` is one."""

    steps: int
    batch_size: int
    seed: int
    with_replacement: bool


def draws(num_rows: int, order: Order, start: int = 0, *, rank: int = 0, num_ranks: int = 1) -> Iterator[Draw]:
    """One rank's equal share of each batch from step `start` on: the ranks' shares, in order, are the batch."""
    share = order.batch_size // num_ranks
    mine = slice(rank * share, (rank + 1) * share)
    every = batches(num_rows, order.batch_size, order.steps, order.seed, start, with_replacement=order.with_replacement)
    for step, rows in enumerate(every, start):
        positions = np.arange(step * order.batch_size, (step + 1) * order.batch_size)
        yield Draw(rows[mine], positions[mine])


def batches(
    num_rows: int, batch_size: int, steps: int, seed: int, start: int = 0, *, with_replacement: bool = False
) -> Iterator[Indices]:
    """The rows of steps `start` to `steps` - 1, batch_size each, int64.

    The data is an endless row of fresh permutations, cut into batches without regard to where an epoch ends. The row
    at a position depends on (seed, epoch, position) alone: a run resumed at any step meets the same samples. A batch
    that straddles two epochs, or is larger than the dataset, can hold a row more than once.

    Args:
        with_replacement: an epoch is `num_rows` independent draws instead.
    """
    if num_rows < 1:
        raise ValueError("wanted rows to train on; found none")
    epoch, order_N = -1, np.empty(0, np.int64)
    for step in range(start, steps):
        batch, position, end = [], step * batch_size, (step + 1) * batch_size
        while position < end:
            if position // num_rows != epoch:
                epoch = position // num_rows
                random = np.random.default_rng([seed, epoch])
                order_N = random.integers(num_rows, size=num_rows) if with_replacement else random.permutation(num_rows)
            offset = position % num_rows
            batch.append(order_N[offset : offset + end - position])
            position += len(batch[-1])
        yield np.concatenate(batch)
