from collections import deque
from pathlib import Path

import pytest

from clbench.execution import ACCELERATOR_STACK, How, take_stack
from clbench.plan import plan
from clbench.plugins import discover
from clbench.spec import build


@pytest.mark.parametrize(("stack", "device", "size"), [(None, "cpu", 1), (None, "cuda:0", 5), (2, "cpu", 2),
                                                      (3, "cuda:0", 3)])
def test_a_stack_is_seeds_of_one_method_in_one_setting(stack, device, size):
    planned = plan(build({"methods": "naive,ewc", "seeds": 5, "scenario": "task,class"}), discover())
    how = How(data_dir=Path(), device=device, command="", workers=1, threads=1, stack=stack, shrink=True, plugin=str)
    waiting, groups = deque(planned), []
    while waiting:
        groups.append(take_stack(waiting, how, device))
    assert max(map(len, groups)) == size <= ACCELERATOR_STACK
    assert sorted(p.trial.key for g in groups for p in g) == sorted(p.trial.key for p in planned)
    for group in groups:
        assert len({(p.trial.setting, p.label) for p in group}) == 1
        assert [p.trial.seed for p in group] == sorted({p.trial.seed for p in group})
