"""Which outputs compete in training (`clbench.strategy.common_options`)."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT

from clbench.core.errors import SpecError
from clbench.core.options import parse_named
from clbench.core.registry import discover
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.strategy.distillation import distillation
from clbench.testing.tiny import bench


def begun(method, options, scenario="class", model=None, learned=1):
    """A strategy that has learned a task and begun the next, and raw samples of it."""
    b = bench(discover().strategy(method), options, scenario, model=model)
    for index in range(learned):
        b.learn(index)
    b.replica.begin(learned)
    b.strategy.before_phase(b.replica.task(learned), 0)
    return b, b.batch(learned)


def head_rows(b, batch):
    """Which outputs' weights the loss of a batch moves."""
    batch = replace(batch, x=b.stream.prepare(batch.x))
    head = b.strategy.model.head
    head.requires_grad_(True)
    gradient, = torch.autograd.grad(b.strategy.loss(batch), head.weight)
    return gradient.abs().sum(1).gt(0).tolist()


@pytest.mark.parametrize(("method", "model"), [("naive", None), ("ewc", None), ("seq-lora", None), ("o-lora", None),
                                               ("l2p", "vit")])
@pytest.mark.parametrize(("outputs", "rows"), [
    ("seen", [True] * 4 + [False] * 2), ("own", [False] * 2 + [True] * 2 + [False] * 2), ("all", [True] * 6)])
def test_labels_of_new_samples_move_the_outputs_that_compete(method, model, outputs, rows):
    assert head_rows(*begun(method, {"outputs": outputs}, model=model)) == rows


@pytest.mark.parametrize(("outputs", "seen"), [("seen", 4), ("own", 4), ("all", 6)])
def test_replayed_samples_compete_among_all_so_far(outputs, seen):
    b, batch = begun("er", {"capacity": 12, "outputs": outputs})
    batch = b.strategy.prepare_batch(b.strategy.prepare_batch(batch))  # by now the memory has samples of this task too
    new = 8
    assert batch.replayed and {0, 1} == set(batch.tasks[new:].tolist())
    batch = replace(batch, x=b.stream.prepare(batch.x))
    logits = b.strategy(batch.x, 1).double()
    own = slice(2, 4) if outputs == "own" else slice(0, seen)
    first = F.cross_entropy(logits[:new, own], batch.y[:new] - own.start, reduction="sum")
    rest = F.cross_entropy(logits[new:, :seen], batch.y[new:], reduction="sum")
    assert b.strategy.loss(batch).item() == pytest.approx(((first + rest) / len(batch.y)).item(), rel=1e-6)


def test_a_divergence_of_masked_logits_is_nan_and_distillation_is_finite():
    b, batch = begun("naive", {})
    new, old = torch.randn(2, 8, 6).unbind()
    masked_new, masked_old = (b.strategy.mask(logits, batch.tasks) for logits in (new, old))
    assert F.kl_div(masked_new.log_softmax(1), masked_old.softmax(1), reduction="batchmean").isnan()
    assert distillation(new, old, b.strategy.class_mask[1], 1.0).isfinite()
    guide, troubleshooting = ((ROOT / "docs" / page).read_text() for page in ("writing-a-strategy.md",
                                                                              "troubleshooting.md"))
    assert "0 times -inf is NaN" in guide and "`clbench.strategy.distillation.distillation`" in guide
    assert "0 times -inf" in troubleshooting


@pytest.mark.parametrize("scenario", ["task", "domain"])
@pytest.mark.parametrize("method", ["inflora", "er"])
def test_elsewhere_the_scenario_decides(method, scenario):
    b, _ = begun(method, {}, scenario)
    active = b.strategy.class_mask[1]
    assert active.tolist() == ([False] * 2 + [True] * 2 + [False] * 2 if scenario == "task" else [True] * 2)


def planned(method, scenario="class"):
    return plan(build({"methods": [method], "scenario": scenario, "seeds": 1}), discover())[0].trial


def test_only_scenario_class_leaves_a_choice():
    with pytest.raises(SpecError, match=r"method 'er': outputs = own applies to scenario class; for scenario"):
        planned("er:outputs=own", "task")
    assert planned("er:outputs=seen", "task").key == planned("er", "task").key


@pytest.mark.parametrize(("method", "fixed"), [("lwf", "own"), ("lwf:form=all-seen", "seen"), ("er-ace", "own"),
                                               ("icarl", "seen")])
def test_where_the_loss_fixes_them_another_value_is_an_error(method, fixed):
    assert planned(f"{method}:outputs={fixed}").key == planned(method).key
    with pytest.raises(SpecError, match=f"outputs = all, but the loss fixes outputs = {fixed}; leave it out"):
        planned(f"{method}:outputs=all")
    name, options = parse_named(method)
    assert bench(discover().strategy(name), options, "class").strategy.outputs == fixed


def test_defaults_are_the_papers_and_heads_per_task_have_their_own():
    expected = {"naive": "seen", "inflora": "own", "l2p": "own", "lora": "own"}
    assert {name: planned_outputs(name) for name in expected} == expected


def planned_outputs(name):
    info = discover().strategy(name)
    return bench(info, {}, "class", model="vit" if name == "l2p" else None).strategy.outputs


@pytest.mark.parametrize("method", ["seq-lora", "o-lora"])
def test_sequential_and_orthogonal_lora_train_new_classes_alone_in_class_il_only(method):
    classes, tasks = planned(method), planned(method, "task")
    assert classes.method.options["outputs"] == "own" and classes.key == planned(f"{method}:outputs=own").key
    assert "outputs" not in planned(f"{method}:outputs=seen").method.options  # as in records from before the option
    assert "outputs" not in tasks.method.options
    assert {planned(f"{method}:outputs={value}", "task").key for value in ("own", "seen")} == {tasks.key}
    assert head_rows(*begun(method, {})) == [False] * 2 + [True] * 2 + [False] * 2


def test_without_boundaries_sequential_lora_keeps_the_classes_seen_unless_own_is_chosen():
    hidden = {"scenario": "class", "seeds": 1, "arrival": {"boundaries": "hidden"}}

    def options(method):
        return plan(build({**hidden, "methods": [method]}), discover())[0].trial.method.options

    assert "outputs" not in options("seq-lora:base=random")
    with pytest.raises(SpecError, match="outputs = own are those of the task at hand"):
        options("seq-lora:base=random:outputs=own")


@pytest.mark.parametrize("method", ["seq-lora", "o-lora"])
def test_a_record_from_before_the_option_is_built_with_the_classes_seen(method):
    info = discover().strategy(method)
    stored = info.options.stored({}).settled(False).in_scenario("class", True)
    assert stored.outputs == "seen"
    assert head_rows(*begun(method, {"outputs": "seen"})) == [True] * 4 + [False] * 2
