"""Every method on a model that is a head alone: it works, or refuses in one line that says the way out."""

import pytest
import torch
from helpers.methods import TASKS

from clbench.core.errors import SpecError
from clbench.core.registry import discover
from clbench.strategy.base import StreamInfo
from clbench.testing import tiny
from clbench.testing.tiny import bench
from clbench.training.budget import phases_of, steps_of
from clbench.training.evaluation import evaluate

ADAPTERS = "adapts layers before the head, and this model is a head alone; choose frozen, which trains a head per task"
PROMPTS = "of a vision transformer, and this model has none; with --model choose vit-tiny"
REFUSED = {
    **dict.fromkeys(("lora", "seq-lora", "o-lora", "inflora", "sd-lora", "lora-sub", "ewc-lora", "lora-mean", "osf",
                     "lae", "slca++"),
                    ADAPTERS),
    **dict.fromkeys(("l2p", "dualprompt", "coda-prompt", "s-iprompts"), PROMPTS),
    **dict.fromkeys(("ease", "mos"), "adapts layers before the head, and this model is a head alone; choose ncm, or a "
                                     "model with layers"),
    "acl": "trains a module that tasks share before the head, and this model is a head alone; choose shared-private",
    "packnet": "shares out weights before the head, and this model is a head alone; choose frozen",
    "xdg": "gates units before the head, and this model is a head alone; choose frozen",
    "hat": "masks units before the head, and this model is a head alone; choose frozen",
    "dynamic-er": "adds layers before the head, and this model is a head alone; choose er, which replays samples",
    "pnn": "connects layers before the head, and this model is a head alone; choose frozen",
    "avalanche:LFL": "trains features behind a frozen head, and this model is a head alone; choose avalanche:LwF",
    "avalanche:PNNStrategy": "has columns of linear layers only, all of one width; take the model mlp",
}
OPTIONS = {"cls-er": {"stable_rate": 1.0, "stable_decay": 0.5}}  # the average lags behind these few steps by default
NAMES = sorted(discover().strategies)


@pytest.mark.parametrize("name", NAMES)
def test_a_method_learns_a_head_or_says_why_not(name):
    info = discover().strategy(name)
    if name in REFUSED:
        with pytest.raises(SpecError) as refusal:
            bench(info, {}, "task", model="linear")
        assert str(refusal.value).startswith(name) and REFUSED[name] in str(refusal.value)
        assert len(str(refusal.value).splitlines()) == 1
        return
    for scenario in ("task", "class"):
        b = bench(info, OPTIONS.get(name, {}), scenario, model="linear")
        b.learn(0)
        assert evaluate(b.strategy, b.stream, scenario, learned=1).accuracy[0] > 0.9
        b.learn(1)


def test_what_is_refused_are_methods_that_there_are():
    assert {*REFUSED} <= {*NAMES}


@pytest.mark.parametrize("base", ["auto", "task1", "random"])
@pytest.mark.parametrize("name", ["ncm", "simplecil", "slda", "ranpac", "fecam", "acil", "frozen", "independent",
                                  "shared-private"])
def test_no_step_goes_to_a_base_that_does_not_exist(name, base):
    b = bench(discover().strategy(name), {"base": base}, "task", model="linear")
    task = b.replica.begin(0)
    closed = name in ("ncm", "simplecil", "slda", "ranpac", "fecam", "acil")
    assert b.strategy.phases(task) == (0 if closed else 1)
    if not closed:
        phase, = phases_of(b.strategy, task, tiny.RECIPE, steps_of(tiny.RECIPE, len(task.train)))
        assert phase.steps == steps_of(tiny.RECIPE, len(task.train))
    says = [note for note in b.strategy.notes if "base = task1 trains nothing here" in note]
    assert len(says) == (base != "random")


def test_a_pretrained_base_is_refused_where_there_is_nothing_to_load():
    for name in ("ncm", "frozen"):
        with pytest.raises(SpecError, match=f"{name}: base = pretrained, and this model is a head alone.*leave base"):
            bench(discover().strategy(name), {"base": "pretrained"}, "task", model="linear")


def test_ncm_on_a_head_alone_sums_up_the_inputs():
    from clbench_prototypes import NCMOptions
    from clbench_prototypes.ncm import NCM

    b = bench(discover().strategy("ncm"), {}, "class", model="linear")
    strategy = NCM(b.strategy.model, StreamInfo(6, TASKS, "class", b.stream.input_shape, torch.Generator(),
                                                prepare=b.stream.prepare), NCMOptions())
    for index in range(2):
        strategy.after_task(b.replica.task(index))
    for index in range(2):
        train = b.stream.tasks[index].train
        x = b.stream.prepare(train.x).flatten(1).double()
        for label in b.stream.tasks[index].classes:
            torch.testing.assert_close(strategy.means[label], x[train.y == label].mean(0))
