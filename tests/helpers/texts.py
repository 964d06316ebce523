"""A tiny text network and a tiny stream of texts, without any library of text models."""

import torch
from torch import nn

from clbench.core import options as opt
from clbench.core import seeds, tokens
from clbench.core.entry_points import resolve
from clbench.core.scenario import scenario_rules
from clbench.data.prepare import Prepare
from clbench.data.samples import Samples
from clbench.data.stream import Stream, StreamTask
from clbench.models.hf_parts import Pool
from clbench.models.network import Block, Ports, TokenNetwork
from clbench.strategy.base import StreamInfo
from clbench.testing.tiny import CLASSES_PER_TASK, SAMPLES, TASKS, Bench

WORDS, LENGTH, WIDTH = 24, 7, 8


class Words(nn.Module):
    """Embed token IDs [N, L] as vectors [N, L, D], which are zero at padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.ports = Ports(1, WIDTH, tokens=True)

    def forward(self, x):
        there = tokens.present(x)
        return self.embedding(x.clamp(min=0)) * there.unsqueeze(-1)


class Mixing(nn.Module):
    """Combine each token with the mean of all tokens that are not padding."""

    def __init__(self):
        super().__init__()
        self.attention = nn.ModuleDict({"q": nn.Linear(WIDTH, WIDTH), "v": nn.Linear(WIDTH, WIDTH)})
        self.ports = Ports(WIDTH, WIDTH, tokens=True)

    def forward(self, h):
        there = tokens.present(h).unsqueeze(-1)
        mean = h.sum(1, keepdim=True) / there.sum(1, keepdim=True).clamp(min=1)
        return (self.attention["q"](h) + self.attention["v"](mean)).tanh() * there


class TextNet(TokenNetwork):
    """A network of two layers over the word vectors."""

    def __init__(self, classes):
        blocks = [Block(Words(), nn.Identity()), Block(Mixing(), nn.Identity()), Block(Mixing(), Pool("mean"))]
        super().__init__(blocks, nn.Linear(WIDTH, classes))

    def normalized(self, h):
        return h

    def pooled(self, h):
        return self.blocks[-1].activation.pooled(h)


def tiny_texts(scenario):
    """Return three tasks of 24 texts with 3 to 6 tokens; the second token determines the class."""
    generator = torch.Generator().manual_seed(0)
    shared = scenario_rules(scenario).shared_outputs

    def samples(task):
        y = torch.arange(SAMPLES) % CLASSES_PER_TASK
        word = y + CLASSES_PER_TASK * task
        x = torch.randint(TASKS * CLASSES_PER_TASK, WORDS, (SAMPLES, LENGTH), generator=generator).int()
        x[:, 1] = word
        for row, length in enumerate(torch.randint(3, LENGTH, (SAMPLES,), generator=generator).tolist()):
            x[row, length:] = tokens.NO_TOKEN
        return Samples(x, y if shared else word, torch.full((SAMPLES,), task))

    parts = tuple(StreamTask(tuple(range(2)) if shared else (2 * t, 2 * t + 1), samples(t), samples(t))
                  for t in range(TASKS))
    return Stream(parts, 2 if shared else 2 * TASKS, (LENGTH,), Prepare(), "tiny texts", ())


def text_bench(info, options, scenario, seed=0, model=None):
    """Return an untrained strategy on the tiny texts, as `clbench.testing.checks.bench` does on images."""
    stream = tiny_texts(scenario)
    with seeds.scope(seed, "init"):
        network = TextNet(stream.classes)
    stream_info = StreamInfo(stream.classes, TASKS, scenario, stream.input_shape, seeds.generator(seed, "strategy"),
                             prepare=stream.prepare, is_text=True)
    with seeds.scope(seed, "strategy"):
        settings = opt.validate(info.options, options, info.name, "")
        strategy = resolve(info.strategy, info.name)(network, stream_info, settings)
    return Bench(strategy, stream, scenario, seed)
