import math

import pytest
import torch
from clbench_bic import BiCOptions
from clbench_bic.strategy import BiC, Correction
from helpers.exemplars import papers_loss
from helpers.methods import activate, batch, deep_model, make, move, task

import clbench
from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.data.samples import Samples, StochasticSamples
from clbench.experiment.spec import Recipe
from clbench.results.metrics import acc
from clbench.strategy.base import Task
from clbench.strategy.granted import PhaseSpec
from clbench.testing.tiny import bench
from clbench.training.loop import TrainingLoop

OPTIONS = {"capacity": 24, "validation": 0.25}


def led(tasks, scenario="class", **options):
    """Return the method in its task number `tasks`, in the first phase, after as many tasks, with corrections."""
    strategy = make(BiC, BiCOptions(**{**OPTIONS, **options}), scenario, deep_model)
    for index in range(tasks + 1):
        activate(strategy, index)
        strategy.before_task(task(index))
        strategy.before_phase(task(index), PhaseSpec(0, 4, 0.1))
        if index == tasks:
            break
        move(strategy, index)
        if strategy.phases(task(index)) != 1:
            strategy.before_phase(task(index), PhaseSpec(1, 4, 0.1))
            move(strategy, 50 + index)
        strategy.after_task(task(index))
    return strategy


def corrected(logits, alpha, beta, classes):
    """What the paper writes: alpha o + beta for the new classes, o for the old ones."""
    out = logits.clone()
    for c in classes:
        out[:, c] = alpha * logits[:, c] + beta
    return out


def test_the_corrected_logits_by_hand():
    correction = Correction(4, torch.zeros(1, dtype=torch.float64))
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    assert torch.equal(correction(logits), logits)
    correction.reset([2, 3])
    with torch.no_grad():
        correction.alpha.fill_(0.5)
        correction.beta.fill_(-1.0)
    assert correction(logits).tolist() == [[1.0, 2.0, 0.5, 1.0]]


def test_after_a_task_the_corrected_logits_answer_and_the_next_task_starts_over():
    strategy, x = led(1), batch(1).x
    strategy.before_phase(task(1), PhaseSpec(1, 4, 0.1))
    move(strategy, 5)
    alpha, beta = strategy.correction.alpha.item(), strategy.correction.beta.item()
    assert alpha != 1 and beta != 0
    torch.testing.assert_close(strategy(x), corrected(strategy.model(x), alpha, beta, [2, 3]), rtol=1e-12, atol=0)
    strategy.after_task(task(1))
    activate(strategy, 2)
    strategy.before_task(task(2))
    assert torch.equal(strategy(x), strategy.model(x))


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_the_loss_is_the_papers_and_distils_corrected_logits(scenario):
    strategy = led(2, scenario, temperature=3.0)
    b = strategy.prepare_batch(batch(2))
    assert b.replayed
    alpha, beta = strategy.old_correction.alpha.item(), strategy.old_correction.beta.item()
    assert (alpha != 1) is (scenario == "class")
    old = strategy.old(b.x).detach()
    move(strategy, 9)
    everything = scenario == "class"
    if everything:
        old = corrected(old, alpha, beta, [2, 3])
    seen = [list(range(6)) if everything else [2 * t, 2 * t + 1] for t in b.tasks.tolist()]
    groups = [[0, 1, 2, 3]] if everything else [[0, 1], [2, 3]]
    logits = strategy.model(b.x).detach().numpy()
    expected = papers_loss(logits, old.numpy(), b.y.tolist(), seen, groups, 4 / 6, 3.0)
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-12)


def test_the_second_phase_is_cross_entropy_of_corrected_logits_and_learns_two_numbers():
    strategy = led(2)
    assert strategy.phases(task(2)) == (0.8, 0.2) and led(0).phases(task(0)) == 1
    strategy.before_phase(task(2), PhaseSpec(1, 4, 0.02))
    strategy.train()
    assert [n for n, p in strategy.named_parameters() if p.requires_grad] == ["correction.alpha", "correction.beta"]
    assert strategy.trainable() == 2 and not strategy.model.training
    assert strategy.learning_rates() == {"correction.*": pytest.approx(5.0)}
    move(strategy, 3)
    b = batch(2)
    assert strategy.prepare_batch(b) is b
    q = corrected(strategy.model(b.x), strategy.correction.alpha.item(), strategy.correction.beta.item(), [4, 5])
    expected = sum(math.log(sum(math.exp(v) for v in row)) - row[y]
                   for row, y in zip(q.tolist(), b.y.tolist(), strict=True)) / len(b.y)
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-12)


def test_the_validation_samples_are_balanced_of_the_task_itself_and_never_trained_on():
    strategy = led(2)
    everything = {tuple(row) for t in range(3) for row in task(t).train.x.tolist()}
    # 24 for 6 classes is 4 each: 1 for validation and 3 exemplars.
    chosen = strategy.phase_samples(task(2), PhaseSpec(1, 4, 0.1))
    assert sorted(chosen.y.tolist()) == list(range(6)) and strategy.phase_samples(task(2), PhaseSpec(0, 4, 0.1)) is None
    held = {tuple(row) for row in chosen.x.tolist()}
    train = strategy.training_samples(task(2))
    assert len(train) == 10 and held <= everything
    assert not held & {tuple(row) for row in train.x.tolist()}
    assert not held & {tuple(row) for row in strategy.memory_x.tolist()}
    assert len(strategy.memory_y) + len(strategy.validation_y) <= 24
    strategy.after_task(task(2))
    assert strategy.sizes == [3] * 6 and strategy.validation_sizes == [1] * 6
    assert strategy.memory_y.tolist() == [c for c in range(6) for _ in range(3)]


def test_in_a_run_the_second_phase_moves_its_two_numbers_and_nothing_else():
    b = bench(discover().strategy("bic"), {"capacity": 20}, "class")
    trainer = TrainingLoop([b.replica], Recipe(lr=1e-2, batch_size=8, epochs=2))
    trainer.train_task(0)
    kept, plain = {}, b.strategy.before_phase

    def noted(task, phase):
        if phase == 1:
            kept.update({n: v.clone() for n, v in b.strategy.state_dict().items()})
        plain(task, phase)

    b.strategy.before_phase = noted
    task1 = b.replica.begin(1)
    trainer.take_task_steps([task1])
    now = b.strategy.state_dict()
    assert {n for n, v in now.items() if not torch.equal(v, kept[n])} == {"correction.alpha", "correction.beta"}


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_where_nothing_is_corrected_nothing_is_held_out(scenario):
    strategy = make(BiC, BiCOptions(capacity=18), scenario, deep_model)
    strategy.class_mask[:] = True
    for index in range(2):
        strategy.before_task(task(index))
        assert strategy.phases(task(index)) == 1 and strategy.training_samples(task(index)) is not None
        assert len(strategy.training_samples(task(index))) == 12 and not strategy.correction.corrected.any()
        strategy.after_task(task(index))


def test_it_needs_two_samples_of_each_class():
    with pytest.raises(SpecError, match=r"bic: capacity = 11 cannot hold 2 samples of each class .* at least 12"):
        make(BiC, BiCOptions(capacity=11), "class", deep_model)
    strategy, whole = make(BiC, BiCOptions(**OPTIONS), "class", deep_model), task(0).train
    with pytest.raises(SpecError, match="class 1 of task 1 has a single sample"):
        strategy.before_task(Task(0, (0, 1), whole.take(torch.tensor([0, 1, 2, 4]))))


def test_samples_that_are_drawn_anew_still_are_without_those_held_out():
    strategy, plain = make(BiC, BiCOptions(**OPTIONS), "class", deep_model), task(0).train
    live = StochasticSamples(plain.x, plain.y, plain.tasks, lambda i: plain.x[i] + 100)
    activate(strategy, 0)
    strategy.before_task(Task(0, (0, 1), live))
    train = strategy.training_samples(Task(0, (0, 1), live))
    assert train.is_stochastic and len(train) == 12 - len(strategy.held_out)
    left = [i for i in range(12) if i not in strategy.held_out]
    index = torch.tensor([2, 0])
    assert torch.equal(train.take(index).x, plain.x[[left[2], left[0]]] + 100)
    assert isinstance(train, Samples) and torch.equal(train.y, plain.y[left])


@pytest.mark.slow
def test_all_three_corrections_remember_more_than_naive(tmp_path):
    records = clbench.run(methods="naive,bic,wa,lucir", scenario="class", model="mlp:width=64:depth=2",
                          benchmark="split-mnist-5k", iterations=40, lr=3e-3, seeds=1, workers=0, out=tmp_path / "run")
    naive, *others = (100 * acc(r.R) for r in records)
    assert naive < 25 and min(others) > 55, (naive, others)
