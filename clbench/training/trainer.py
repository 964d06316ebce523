"""The only training loop: it trains one strategy, or several seeds of it, by a recipe, and knows no method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from clbench.core import seeds, tokens
from clbench.core.device import send
from clbench.core.errors import SpecError
from clbench.data.augmentation import Augmentation
from clbench.data.prefetch import prefetched
from clbench.data.samples import Samples
from clbench.experiment.spec import Recipe
from clbench.strategy.base import Batch, Strategy, Task
from clbench.strategy.granted import Budget
from clbench.training import cache, numerics
from clbench.training.budget import phases_of, steps_of
from clbench.training.cache import PhaseInputs
from clbench.training.curve import Watch
from clbench.training.flops import FlopCount
from clbench.training.lifecycle import Trained, begin_phase
from clbench.training.loop_flops import LoopFlops
from clbench.training.losses import diverged, last_tenths, on_host
from clbench.training.optimizers import make_optimizer, make_schedule, require_head_rate
from clbench.training.stacking import Engine, Unstackable, make_engine
from clbench.training.step_flops import PhaseFlops


class Order:
    """The order in which a task's samples are drawn: a permutation per pass; the last batch may be smaller.

    With `repeats`, each batch is given so many times. The order comes from the axis ("data", task) of the seed, so it
    is the same for every method; so is what is drawn to augment each batch, from ("augmentation", task). What a method
    replays has draws of its own, and so has a phase with samples of its own, from the same axes and its number.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, task: int,
                 augment: Augmentation | None = None, phase: int | None = None, repeats: int | None = None) -> None:
        """Begin the first pass; `phase` is that of the samples if they are not the task's."""
        axes = (task,) if phase is None else (task, phase)
        self.samples = samples
        self.batch_size = batch_size
        self.task = task
        self.augment = augment
        self.generator = seeds.generator(seed, "data", *axes)
        self.draws = (seeds.generator(seed, "augmentation", *axes),
                      seeds.generator(seed, "augmentation of replay", *axes))
        self.repeats = repeats or 1
        self.passes = 0
        self.fresh = True  # whether the last batch was not a repeated one
        self.left: list[Tensor] = []

    def following(self, device: torch.device) -> Tensor:
        """Return the indices of the next batch, int64 [N]; `device` is where those of a new pass go."""
        if not self.left:
            order = send(torch.randperm(self.samples, generator=self.generator), device)
            self.left = [batch for batch in reversed(torch.split(order, self.batch_size)) for _ in range(self.repeats)]
            self.passes += 1
        self.fresh = len(self.left) % self.repeats == 0
        return self.left.pop()

    def batch(self, samples: Samples) -> Batch:
        """Return the next batch of samples, which may be raw or prepared."""
        part = samples.take(self.following(samples.index_device))
        return Batch(part.x, part.y, part.tasks, self.task, first_pass=self.passes == 1 and self.fresh,
                     frozen=part.frozen)

    def augmented(self, x: Tensor, replayed: bool) -> Tensor:
        """Return raw images [N, C, H, W], augmented by the next draws for new samples or for replayed ones."""
        assert self.augment is not None
        return self.augment(x, self.augment.draw(len(x), self.draws[replayed]))

    def ready(self, strategy: Strategy, samples: Samples, count: PhaseFlops | None = None) -> Batch:
        """Return the next batch of raw samples, augmented and prepared: what `strategy.loss` is given."""
        return self.prepared(strategy, self.batch(samples), count)

    def prepared(self, strategy: Strategy, batch: Batch, count: PhaseFlops | None) -> Batch:
        """Return a raw batch, augmented and prepared."""
        new = len(batch.y)
        batch = count.augment(strategy, batch) if count is not None else strategy.augment_batch(batch)
        x = batch.x
        if self.augment is not None:
            own, replayed = self.draws
            x = self.augment(x, torch.cat([self.augment.draw(new, own), self.augment.draw(len(x) - new, replayed)]))
        return replace(batch, x=strategy.world.prepare(x))


class Trainer:
    """Trains one strategy, or several seeds of it as one stack, task by task.

    Args:
        strategies: the members, alike in everything but their seed.
        recipe: how they are trained.
        seeds: the seed of each member, for its data order.
        augment: how training images are augmented, None for not at all.
        compiler: what compiles the losses, None for not at all.
        cache_bytes: bytes that a phase may store; None for the default.
        watch: evaluates the strategies between steps, None for nobody.
        verify_caches: whether all that a phase stores is computed again when it ends.
    """

    def __init__(self, strategies: Sequence[Strategy], recipe: Recipe, seeds: Sequence[int],
                 augment: Augmentation | None = None, compiler: numerics.Compiler | None = None,
                 cache_bytes: int | None = None, watch: Watch | None = None, verify_caches: bool = False) -> None:
        """Train `strategies` by `recipe`, each in the data order of its seed.

        Raises:
            Unstackable: several that train by a loop of their own.
        """
        if len(strategies) > 1 and strategies[0].owns_loop:
            raise Unstackable(f"{type(strategies[0]).__name__} trains by a loop of its own, one seed at a time")
        self.compiler = compiler
        self.cache_bytes = cache_bytes
        self.verify_caches = verify_caches
        self.watch = watch
        self.augment = augment
        self.strategies = list(strategies)
        self.recipe = recipe
        self.seeds = list(seeds)
        self.engine: Engine | None = None  # the last one, for optimiser state that is kept

    def fit(self, tasks: Sequence[Task]) -> list[Trained]:
        """Train on a task phase by phase, each member on its own view of the task; without phases, take no step.

        Raises:
            Unstackable: members have tasks of different sizes, or what they draw would depend on each other.
            ValueError: there are fewer steps than phases.
        """
        index = tasks[0].index
        if self.watch is not None and (self.strategies[0].owns_loop or not self.strategies[0].phases(tasks[0])):
            self.watch.look(index, 0)
        if self.strategies[0].owns_loop:
            if self.recipe.head_lr is not None:
                require_head_rate(self.strategies[0])
            return [self._by_itself(self.strategies[0], tasks[0])]
        if not self.strategies[0].phases(tasks[0]):
            return [Trained(steps=0, trainable=0) for _ in tasks]
        usual = stackable([s.training_samples(t) for s, t in zip(self.strategies, tasks, strict=True)])
        # What a member draws between steps goes on from where that member stopped, as if it were alone.
        draws: list[AbstractContextManager[None]] = (
            [seeds.Course(seed, "training", tasks[0].index) for seed in self.seeds] if len(usual) > 1
            else [nullcontext()])
        steps = steps_of(self.recipe, len(usual[0]))
        phases = phases_of(self.strategies[0], tasks[0], self.recipe, steps)
        usual_order = self._orders(usual, tasks)
        most, done = 0, 0
        flops = [FlopCount() for _ in tasks]
        losses: list[Tensor] = []
        for phase in phases:
            for strategy, task, own, spent in zip(self.strategies, tasks, draws, flops, strict=True):
                with own, spent:
                    begin_phase(strategy, task, phase)
            own_samples = [s.phase_samples(t, phase) for s, t in zip(self.strategies, tasks, strict=True)]
            samples, order = usual, usual_order
            if (chosen := [part for part in own_samples if part is not None]):
                samples = stackable(chosen)
                order = self._orders(samples, tasks, phase)
            drawn = phase.steps * self.recipe.batch_size
            forward = numerics.forward(self.recipe, self.strategies[0].active.device)
            given = (PhaseInputs(samples, samples) if self.augment else
                     cache.phase_inputs(self.strategies, samples, index, drawn, self.recipe.batch_size, forward,
                                        self.cache_bytes))
            engine = make_engine(self.strategies, self.recipe, self.engine, self.compiler)
            self.engine = engine
            count = PhaseFlops(self.strategies, given, self.compiler is not None)
            most = max(most, self.strategies[0].trainable())
            schedule = make_schedule(self.recipe, engine.optimizer, phase.steps)
            indices = [partial(o.following, torch.device("cpu")) for o in order]
            with (cache.starting_at(self.strategies, given.start),
                  prefetched(given.samples, indices, phase.steps) as ready):
                look = self._look(index, steps, engine)
                if not done:
                    look(0)
                self._take_steps(range(done, done + phase.steps), engine, count, order, ready, given.prepared, schedule,
                                 losses, look)
            done += phase.steps
            engine.close()
            given.verify(self.strategies, seeds.derive(self.seeds[0], "phase", index, phase), self.verify_caches)
            for spent, total in zip(flops, count.totals, strict=True):
                spent.total += total
        last = phases[-1].steps
        return [Trained(steps, most, diverged(column, tasks[0].index), spent.total, last_tenths(column, last))
                for column, spent in zip(on_host(torch.stack(losses)).unbind(1), flops, strict=True)]

    def _take_steps(self, steps: range, engine: Engine, count: PhaseFlops, order: Sequence[Order],
                    samples: Sequence[Samples], prepared: bool, schedule: LRScheduler | None,
                    losses: list[Tensor], look: Callable[[int], None]) -> None:
        """Take steps and append the losses [S] of each, none after all have diverged; look after each."""
        for step in steps:
            losses.append(count.step(engine, self._shortened([
                o.batch(part) if prepared else o.ready(strategy, part, count)
                for strategy, o, part in zip(self.strategies, order, samples, strict=True)])))
            if schedule is not None:
                schedule.step()
            look(step + 1)
            if self._hopeless(losses, step):
                break

    def _look(self, index: int, steps: int, engine: Engine, first: int = 0) -> Callable[[int], None]:
        """Return what looks at the strategies after a step, where one is due, if they are watched.

        Args:
            index: of the task.
            steps: that it has.
            engine: that takes them.
            first: the number of the first of them.
        """
        def look(step: int) -> None:
            if self.watch is not None and self.watch.due(step - first, steps):
                self.watch.look(index, step - first, engine)

        return look

    def _shortened(self, batches: list[Batch]) -> list[Batch]:
        """Return batches of text cut off behind the longest sample of all members, others as they are."""
        if not self.strategies[0].world.is_text:
            return batches
        return [replace(b, x=x) for b, x in zip(batches, tokens.shortened([b.x for b in batches]), strict=True)]

    def _orders(self, samples: Sequence[Samples], tasks: Sequence[Task], phase: int | None = None) -> list[Order]:
        """Return the order of each member's samples; `phase` if they are that phase's own."""
        return [Order(len(part), self.recipe.batch_size, seed, task.index, self.augment, phase,
                      self.recipe.repeats)
                for part, task, seed in zip(samples, tasks, self.seeds, strict=True)]

    def _by_itself(self, strategy: Strategy, task: Task) -> Trained:
        """Train a strategy that has its own loop (`Strategy.fit`)."""
        if self.recipe.repeats:
            raise SpecError(f"{type(strategy).__name__} trains by a loop of its own: repeats does not go with it")
        order = Order(len(task.train), self.recipe.batch_size, self.seeds[0], task.index, self.augment)
        strategy.train()
        with LoopFlops(partial(order.following, torch.device("cpu")), steps_of(self.recipe, len(task.train))) as count:
            losses = on_host(strategy.fit(task, Budget(
                self.recipe, count.following, partial(make_optimizer, self.recipe),
                partial(make_schedule, self.recipe), order.augmented if self.augment else None)))
        return Trained(len(losses), strategy.trainable(), diverged(losses, task.index), count.total,
                       last_tenths(losses, len(losses)))

    def keep(self, strategies: Sequence[Strategy]) -> None:
        """Continue with these members only."""
        if len(strategies) != len(self.strategies):
            chosen = [i for i, s in enumerate(self.strategies) if any(s is k for k in strategies)]
            self.strategies = [self.strategies[i] for i in chosen]
            self.seeds = [self.seeds[i] for i in chosen]
            assert self.engine is not None
            self.engine.keep_members(chosen)
            if self.watch is not None:
                self.watch.keep(strategies)

    def _hopeless(self, losses: list[Tensor], step: int) -> bool:
        """Return whether every member has diverged; checked every 256 steps, since checking waits for the device."""
        return step % 256 == 255 and not bool(torch.isfinite(losses[-1]).any())


def stackable(samples: list[Samples]) -> list[Samples]:
    """Return the samples of each member of a stack.

    Raises:
        Unstackable: members have different numbers of them, or draw them anew for every batch.
    """
    if len(sizes := {len(part) for part in samples}) > 1:  # other batches, and with epochs other budgets
        raise Unstackable(f"tasks of {min(sizes):,} to {max(sizes):,} training samples do not go in one stack")
    if len(samples) > 1 and samples[0].is_stochastic:
        raise Unstackable("its samples change randomly with every batch, and vectorized trials would share one random "
                          "generator")
    return samples

