from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clbench_lwf import LwFOptions
from clbench_lwf.strategy import LwF
from helpers.methods import activate, batch, deep_model, make, move, task
from helpers.stacks import lead

import clbench
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.results.metrics import acc
from clbench.strategy.distillation import distillation
from clbench.training.costs import measure

FORMS = ["new-classes", "all-seen", "zero-padded", "lwf-mc"]


def papers_loss(logits, old, columns, temperature):
    """Equations 2 to 4: probabilities to the power of 1/T, normalized."""
    p, q = old[:, columns].softmax(1) ** (1 / temperature), logits[:, columns].softmax(1) ** (1 / temperature)
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return -(p * q.log()).sum(1).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.0])
def test_distillation_is_the_papers(temperature):
    g = torch.Generator().manual_seed(0)
    logits, old = (torch.randn(5, 6, generator=g, dtype=torch.float64) for _ in range(2))
    outputs = torch.tensor([True, False, True, True, False, False])
    got = distillation(logits, old, outputs, temperature)
    torch.testing.assert_close(got, papers_loss(logits, old, [0, 2, 3], temperature), rtol=1e-12, atol=0)
    assert distillation(old, old, outputs, temperature) <= got


def softmax(z):
    """Rows of probabilities, in numpy."""
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def sigmoid_loss(z, targets):
    """Binary cross-entropies as written: -(t log s + (1 - t) log(1 - s)), summed over outputs, a mean over samples."""
    s = 1 / (1 + np.exp(-z))
    return -(targets * np.log(s) + (1 - targets) * np.log(1 - s)).sum(1).mean()


def expected_loss(form, scenario, logits, old, y, taught, known, strength, temperature):
    """The table of the docstring, in numpy, with lists of columns: the task's, and the old ones."""
    everything = sorted({*taught, *known}) if scenario == "class" else taught
    groups = [known[i:i + 2] for i in range(0, len(known), 2)] if scenario == "task" else [known]
    if form == "lwf-mc":
        loss = sigmoid_loss(logits[:, taught], y[:, None] == np.array(taught))
        targets = 1 / (1 + np.exp(-old / temperature))
        return loss + strength * sum(sigmoid_loss(logits[:, g] / temperature, targets[:, g]) for g in groups)
    compete = taught if form == "new-classes" else everything
    loss = -np.log(softmax(logits[:, compete]))[np.arange(len(y)), [compete.index(c) for c in y]].mean()
    for group in groups:
        wide = everything if form == "zero-padded" and scenario == "class" else group
        p = np.zeros((len(y), len(wide)))
        p[:, [wide.index(c) for c in group]] = softmax(old[:, group] / temperature)
        loss -= strength * (p * np.log(softmax(logits[:, wide] / temperature))).sum(1).mean()
    return loss


def begun(options, scenario):
    """Return the method in its third task, moved, with a batch, and the old network's logits for it."""
    strategy = make(LwF, options, scenario, deep_model)
    if scenario == "domain":
        strategy.class_mask[:] = True
    for index in range(3):
        if scenario != "domain":
            activate(strategy, index)
        part = task(index)
        strategy.before_task(replace(part, classes=tuple(range(6))) if scenario == "domain" else part)
        if index < 2:
            move(strategy, index)
            strategy.after_task(part)
    b = batch(2)
    old = strategy.model(b.x).detach()
    move(strategy, 9)
    return strategy, b, old


@pytest.mark.parametrize(("scenario", "taught", "known"), [
    ("task", [4, 5], [0, 1, 2, 3]), ("class", [4, 5], [0, 1, 2, 3]), ("domain", list(range(6)), list(range(6)))])
@pytest.mark.parametrize("temperature", [2.0, 1.0])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_what_its_line_says(form, temperature, scenario, taught, known):
    strategy, b, old = begun(LwFOptions(form=form, strength=0.7, temperature=temperature), scenario)
    logits = strategy.model(b.x).detach().numpy()
    expected = expected_loss(form, scenario, logits, old.numpy(), b.y.numpy(), taught, known, 0.7, temperature)
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("scenario", "groups", "outputs"), [("task", 2, 2), ("class", 1, 6), ("domain", 1, 6)])
def test_losses_are_weighted_by_task_as_in_what_was_published(scenario, groups, outputs):
    def loss(**options):
        strategy, b, _ = begun(LwFOptions(form="zero-padded", temperature=3.0, **options), scenario)
        return strategy.loss(b).item()

    labels, both = loss(strength=0.0), loss(strength=0.7)
    distilled = (both - labels) * 3.0**2 * 2 / 3 / groups  # in the third task; a mean over old tasks
    assert loss(strength=0.7, weights="by-task") == pytest.approx(labels / 3 + distilled, rel=1e-12)
    assert loss(strength=0.7, weights="by-task-mean") == pytest.approx(labels / 3 + distilled / outputs, rel=1e-12)


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_the_loss_of_van_de_vens_code_since_2022_in_plain_torch(scenario):
    """Labels and distillation over all six outputs; the mean over old tasks, times their number but in class."""
    strategy, b, old = begun(LwFOptions(form="all", weights="by-old-tasks"), scenario)
    if scenario == "class":  # as the harness does for outputs = all
        assert strategy.activated == strategy.outputs == "all"
        strategy.class_mask[:] = True
        strategy.known[:2] = True
    logits = strategy.model(b.x).detach()
    groups = [slice(0, 2), slice(2, 4)] if scenario == "task" else [slice(0, 6)]
    own = slice(4, 6) if scenario == "task" else slice(0, 6)
    labels = F.cross_entropy(logits[:, own], b.y - (4 if scenario == "task" else 0))
    losses = [(-F.softmax(old[:, g] / 2, 1) * F.log_softmax(logits[:, g] / 2, 1)).sum(1).mean() for g in groups]
    expected = labels + sum(losses) / len(losses) * (1 if scenario == "class" else 2)
    torch.testing.assert_close(strategy.loss(b), expected, rtol=1e-12, atol=0)


def test_with_all_outputs_the_harness_activates_classes_of_later_tasks():
    from clbench.testing.tiny import bench

    b = bench(discover().strategy("lwf"), {"form": "all"}, "class")
    b.learn(0)
    assert b.strategy.class_mask[0].all() and b.strategy.known[0].all()
    other = bench(discover().strategy("lwf"), {"form": "all-seen"}, "class")
    other.learn(0)
    assert other.strategy.known[0].sum() == 2


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_the_loss_of_what_was_published_in_plain_torch(scenario):
    # van de Ven's code of April 2019 as it is: the mean over samples and outputs alike, then over old tasks.
    strategy, b, old = begun(LwFOptions(form="zero-padded", weights="by-task-mean"), scenario)
    logits = strategy.model(b.x).detach()
    own, seen = slice(4, 6), slice(0, 6)
    groups = {"task": [(slice(0, 2), slice(0, 2)), (slice(2, 4), slice(2, 4))], "class": [(slice(0, 4), seen)],
              "domain": [(seen, seen)]}[scenario]
    now = logits[:, own] if scenario == "task" else logits
    labels = F.cross_entropy(now, b.y - 4 if scenario == "task" else b.y)
    losses = []
    for before, after in groups:
        target = F.softmax(old[:, before] / 2, 1)
        q = F.log_softmax(logits[:, after] / 2, 1)
        target = F.pad(target, (0, q.shape[1] - target.shape[1]))
        losses.append((-target * q).mean() * 2**2)
    expected = labels / 3 + 2 / 3 * sum(losses) / len(losses)
    torch.testing.assert_close(strategy.loss(b), expected, rtol=1e-12, atol=0, check_dtype=True)


def test_only_the_form_of_before_lets_labels_lower_old_logits_unhindered():
    # The gradient towards a common shift of all old logits, where the network is still the old one.
    slopes = {}
    for form in FORMS:
        strategy, b, _ = begun(LwFOptions(form=form), "class")
        strategy.model.load_state_dict(strategy.old.state_dict())
        strategy.loss(b).backward()
        slopes[form] = strategy.model.head.bias.grad[:4].sum().item()
    assert slopes["all-seen"] > 0.1  # downhill is down
    assert abs(slopes["new-classes"]) < 1e-12 and abs(slopes["lwf-mc"]) < 1e-12
    assert slopes["zero-padded"] < slopes["all-seen"] - 0.01


@pytest.mark.parametrize("scenario", ["task", "domain"])
def test_the_softmax_forms_differ_in_scenario_class_only(scenario):
    losses = {}
    for form in FORMS[:3]:
        strategy, b, _ = begun(LwFOptions(form=form), scenario)
        losses[form] = strategy.loss(b).item()
    assert len(set(losses.values())) == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_class_that_returns_is_learned_and_distilled(form):
    strategy, b, old = begun(LwFOptions(form=form, temperature=2.0), "class")
    strategy.before_task(replace(task(2), classes=(1, 4, 5)))
    b = replace(b, y=torch.tensor([1, 4, 5, 1, 4, 5]))
    logits = strategy.model(b.x).detach().numpy()
    expected = expected_loss(form, "class", logits, old.numpy(), b.y.numpy(), [1, 4, 5], [0, 1, 2, 3], 1.0, 2.0)
    assert strategy.loss(b).item() == pytest.approx(expected, rel=1e-12)


def test_lwf_mc_has_no_temperature_unless_one_is_given():
    assert make(LwF, LwFOptions(form="lwf-mc")).options.temperature == 1.0
    assert make(LwF, LwFOptions(form="lwf-mc", temperature=2.0)).options.temperature == 2.0
    assert make(LwF, LwFOptions()).options.temperature == 2.0
    one, = plan(build({"methods": "lwf:form=lwf-mc", "seeds": 1, "benchmark": "split-mnist-5k"}), discover())
    assert one.trial.method.options == {"strength": 1.0, "temperature": 1.0, "form": "lwf-mc"}
    assert LwFOptions.stored(one.trial.method.options).settled(False) == LwFOptions(form="lwf-mc", temperature=1.0)
    both = plan(build({"methods": "lwf:form=lwf-mc,lwf:form=lwf-mc:temperature=2", "seeds": 1}), discover())
    assert [p.label for p in both] == ["lwf:form=lwf-mc", "lwf:temperature=2:form=lwf-mc"]


def test_the_form_of_before_has_the_keys_of_before():
    assert LwFOptions(form="all-seen").model_dump() == {"strength": 1.0, "temperature": 2.0}
    assert LwFOptions.stored({"strength": 1.0, "temperature": 2.0}).form == "all-seen"


@pytest.mark.slow
def test_in_scenario_class_it_forgets_less_than_naive(tmp_path):
    records = clbench.run(methods="naive,lwf,lwf:form=lwf-mc", scenario="class", model="mlp:width=64:depth=1",
                          benchmark="split-mnist-5k", iterations=30, lr=3e-3, seeds=2, workers=0, out=tmp_path / "run")
    reached = [100 * acc(r.R) for r in records]  # by method, then seed
    assert max(reached[:2]) < 22 and min(reached[2:]) > 30, reached


@pytest.mark.parametrize("scenario", ["task", "class"])
@pytest.mark.parametrize("form", FORMS)
def test_a_stack_of_a_form_equals_its_members_alone(form, scenario):
    info, seeds = discover().strategy("lwf"), [0, 1, 1]
    options = [{"form": form}, {"form": form, "strength": 3.0}, {"form": form, "temperature": 4.0}]
    recipe = Recipe(optimizer="sgd", lr=0.05, batch_size=8, epochs=2)
    stacked = lead(info, options, seeds, recipe, scenario, double=True)
    for own, seed, member in zip(options, seeds, stacked, strict=True):
        alone = lead(info, own, [seed], recipe, scenario, double=True)[0].strategy.state_dict()
        for name, ours in member.strategy.state_dict().items():
            torch.testing.assert_close(ours, alone[name], rtol=1e-8, atol=1e-9)


def test_the_first_task_is_fine_tuning_and_one_old_network_is_kept():
    strategy = make(LwF, LwFOptions())
    b = batch(0)
    strategy.before_task(task(0))
    assert torch.equal(strategy.loss(b), strategy.cross_entropy(strategy.model(b.x), b))
    for index in range(3):
        strategy.after_task(task(index))
        strategy.train()
    own = sum(p.numel() for p in strategy.model.parameters())
    assert measure(strategy).parameters == {"base": own, "old network": own}
    assert strategy.model.training and not strategy.old.training
    assert {n for n, p in strategy.named_parameters() if p.requires_grad} == {
        f"model.{n}" for n, _ in strategy.model.named_parameters()}
