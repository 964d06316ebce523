"""Stacks of seeds on the tiny stream, led as a run leads them."""

from dataclasses import replace

from clbench.core import seeds
from clbench.strategy.base import Task
from clbench.testing.checks import bench
from clbench.training.trainer import Trainer
from clbench.training.trials.state import activate


def lead(info, options, seeds_, recipe, scenario="task", tasks=3, model=None, double=False):
    """Train the members together, as trial.learn does, and return the benches; options of each in a list, or of all."""
    each = options if isinstance(options, list) else [options] * len(seeds_)
    benches = [bench(info, own, scenario, seed, model) for own, seed in zip(each, seeds_, strict=True)]
    for b in benches if double else ():
        b.strategy.double().world = replace(b.strategy.world, prepare=lambda x, b=b: b.stream.prepare(x).double())
    trainer = Trainer([b.strategy for b in benches], recipe, list(seeds_))
    for index in range(tasks):
        known = [b.stream.tasks[index] for b in benches]
        work = [Task(index, k.classes, k.train) for k in known]
        for b, task, seed in zip(benches, work, seeds_, strict=True):
            activate(b.strategy, b.stream, index)
            with seeds.scope(seed, "strategy", index):
                b.strategy.before_task(task)
        results = trainer.fit(work)
        assert all(r.diverged is None for r in results)
        for b, task, seed in zip(benches, work, seeds_, strict=True):
            with seeds.scope(seed, "consolidation", index):
                b.strategy.after_task(task)
    return benches
