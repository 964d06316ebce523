import torch

from clbench import seeds


def test_axes_are_independent_and_stable():
    assert seeds.derive(0, "data", 1) == seeds.derive(0, "data", 1)
    assert len({seeds.derive(s, a, t) for s in range(5) for a in ("data", "init") for t in range(5)}) == 50
    assert 0 <= seeds.derive(3, "x") < 2**63


def test_a_scope_seeds_and_restores():
    before = torch.get_rng_state()
    with seeds.scope(0, "init"):
        first = torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
    with seeds.scope(0, "init"):
        assert torch.equal(first, torch.rand(3))
    with seeds.scope(1, "init"):
        assert not torch.equal(first, torch.rand(3))
