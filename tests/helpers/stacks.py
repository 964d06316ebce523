"""Stacks of seeds on the tiny stream, trained as a run trains them."""

from dataclasses import replace

from clbench.testing.tiny import bench
from clbench.training.loop import TrainingLoop


def lead(info, options, seeds_, recipe, scenario="task", tasks=3, model=None, double=False):
    """Train one replica per seed together and return the benches; `options` are a list by seed, or shared by all."""
    each = options if isinstance(options, list) else [options] * len(seeds_)
    benches = [bench(info, own, scenario, seed, model) for own, seed in zip(each, seeds_, strict=True)]
    for b in benches if double else ():
        b.strategy.double().stream_info = replace(
            b.strategy.stream_info, prepare=lambda x, b=b: b.stream.prepare(x).double())
    trainer = TrainingLoop([b.replica for b in benches], recipe)
    for index in range(tasks):
        results = trainer.train_task(index)
        assert all(r.diverged is None for r in results)
    return benches
