import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.experiment.plan import plan, trials_of_shard
from clbench.experiment.spec import build

REGISTRY = discover()


@functools.cache
def planned(methods, seeds, scenario="task,class"):
    return plan(build({"methods": methods, "seeds": seeds, "scenario": scenario}), REGISTRY)


@given(st.integers(1, 4), st.integers(1, 7), st.integers(1, 20))
def test_parts_are_the_whole_and_even(methods, seeds, parts):
    whole = planned(",".join(["naive", "ewc", "er", "lora"][:methods]), seeds)
    parts = min(parts, len(whole))
    found = [trials_of_shard(whole, f"{i}/{parts}") for i in range(1, parts + 1)]
    assert sorted(p.trial.key for shard in found for p in shard) == sorted(p.trial.key for p in whole)
    sizes = [len(shard) for shard in found]
    assert max(sizes) - min(sizes) <= 1
    for kind in {(p.trial.environment, p.label) for p in whole}:
        counts = [sum((p.trial.environment, p.label) == kind for p in shard) for shard in found]
        assert max(counts) - min(counts) <= 1
    assert all(shard == [p for p in whole if p in shard] for shard in found)


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "-1/2", "1/2/3", ""])
def test_what_is_no_shard_is_refused(shard):
    with pytest.raises(SpecError, match=r"write i/n with i from 1 to n, as in 2/8"):
        trials_of_shard(planned("naive", 2), shard)


def test_no_part_is_empty():
    with pytest.raises(SpecError, match="only 4 trials, so some parts would be empty: use fewer parts"):
        trials_of_shard(planned("naive", 2), "5/5")
