"""Streams for the tests."""

import random
from dataclasses import replace

import numpy as np
import torch

from clbench.data.raw import RawStream, Split
from clbench.data.samples import StochasticSamples
from clbench.testing.tiny import tiny_stream


def stochastic(scenario):
    """Return the tiny stream with random noise and flips that differ at each access."""
    stream = tiny_stream(scenario)

    def with_noise(part):
        def draw(i):
            noise = torch.randint(0, 20, part.x.shape[1:], dtype=torch.uint8) + np.random.randint(5)
            return (part.x[i].flip(-1) if random.random() < 0.5 else part.x[i]) + noise
        return StochasticSamples(part.x, part.y, part.tasks, draw)

    return replace(stream, tasks=tuple(replace(t, train=with_noise(t.train)) for t in stream.tasks))


def raw(orders=((0, 1), (2, 3)), n=8, **extra):
    generator = torch.Generator().manual_seed(0)

    def splits():
        return tuple(Split(torch.randint(0, 256, (n, 1, 3, 3), generator=generator, dtype=torch.uint8),
                           torch.tensor(order)[torch.arange(n) % len(order)]) for order in orders)

    return RawStream(splits(), splits(), tuple(orders), **extra)


def permuted(tasks=3, n=8):
    one = raw(((0, 1),), n)
    orders = tuple(torch.randperm(9, generator=torch.Generator().manual_seed(t)) for t in range(tasks))

    def splits(first):
        return (first, *(Split(first.x, first.y, p) for p in orders[1:]))

    return RawStream(splits(one.train[0]), splits(one.test[0]), ((0, 1),) * tasks), orders
