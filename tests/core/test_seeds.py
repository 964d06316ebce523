import random

import numpy as np
import pytest
import torch

from clbench.core import seeds


def test_axes_are_independent_and_stable():
    assert seeds.derive(0, "data", 1) == seeds.derive(0, "data", 1)
    assert len({seeds.derive(s, a, t) for s in range(5) for a in ("data", "init") for t in range(5)}) == 50
    assert 0 <= seeds.derive(3, "x") < 2**63


def drawn(seed):
    with seeds.scope(seed, "init"):
        return [torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()]


def test_a_scope_seeds_all_global_generators_and_restores_them():
    before = seeds.state()
    first = drawn(0)
    assert seeds.state() == before
    assert first == drawn(0) and not any(a == b for a, b in zip(first, drawn(1), strict=True))


def test_the_state_of_the_generators_is_that_of_each():
    before = seeds.state()
    for draw in (torch.rand, np.random.rand, lambda _: random.random()):
        first = draw(2)
        assert seeds.state() != before
        seeds.restore(before)
        assert (draw(2) == first).all() if hasattr(first, "all") else draw(2) == first
        seeds.restore(before)


@pytest.mark.parametrize("available", [False, True])
def test_accelerators_that_exist_are_seeded_too(available, monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with torch.random.fork_rng(devices=[]):
        seeds.reseed(3, "init")
        assert torch.initial_seed() == seeds.derive(3, "init")
        assert seeded == [seeds.derive(3, "init")] * available


def test_draws_continue_on_a_cuda_device_too(monkeypatch):
    generator = torch.Generator().manual_seed(5)  # instead of that of a device
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: generator.get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: generator.set_state(state))
    expected = torch.rand(4, generator=torch.Generator().manual_seed(5))
    continued, draws = seeds.ContinuedDraws(0, "training", device=torch.device("cuda", 0)), []
    for _ in range(2):
        before = generator.get_state()
        with continued:
            draws.append(torch.rand(2, generator=generator))
        assert torch.equal(generator.get_state(), before)
        torch.rand(3, generator=generator)
    assert torch.equal(torch.cat(draws), expected)
