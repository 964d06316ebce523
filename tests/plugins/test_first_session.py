"""`adapt = lora`: the first task adapts a pretrained network, and all else goes on in closed form."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from clbench_lora import SeqLoRAOptions
from clbench_lora.seq import SeqLoRA
from clbench_prototypes import FeCAMOptions, NCMOptions, RanPACOptions, SimpleCILOptions, SLDAOptions
from clbench_prototypes.fecam import FeCAM
from clbench_prototypes.ncm import NCM
from clbench_prototypes.ranpac import RanPAC
from clbench_prototypes.simplecil import SimpleCIL
from clbench_prototypes.slda import SLDA
from helpers.per_task import make_model, make_stream_info
from helpers.stacks import lead
from pydantic import ValidationError

from clbench.core.errors import SpecError
from clbench.core.hookspecs import StrategyInfo
from clbench.core.options import validate
from clbench.core.registry import discover
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import Recipe, build
from clbench.models.builtin import MLPOptions
from clbench.models.small import mlp
from clbench.testing.checks import CHECKS, check
from clbench.testing.tiny import bench
from clbench.training.costs import measure

KINDS = {"ncm": (NCM, NCMOptions), "simplecil": (SimpleCIL, SimpleCILOptions), "slda": (SLDA, SLDAOptions),
         "ranpac": (RanPAC, RanPACOptions), "fecam": (FeCAM, FeCAMOptions), "seq-lora": (SeqLoRA, SeqLoRAOptions)}


def on_weights(method):
    """Return a method's declaration on the tiny stream, whose network is then taken for a pretrained one."""
    cls, options = KINDS[method]

    class Given(cls):
        def __init__(self, model, stream_info, options=None):
            super().__init__(model, dataclasses.replace(stream_info, pretrained=True), options)

    return StrategyInfo(method, Given, "", options)


def adapted(method, **options):
    return bench(on_weights(method), {"adapt": "lora", **options}, "class")


def network(b):
    return {n: t.clone() for n, t in b.strategy.model.state_dict().items()}


@pytest.mark.parametrize("method", [m for m in KINDS if m != "seq-lora"])
def test_the_network_is_seq_loras_after_the_first_task_and_does_not_change_any_more(method):
    ours, theirs = adapted(method, rank=3), bench(on_weights("seq-lora"), {"rank": 3}, "class")
    start = network(ours)
    for b in (ours, theirs):
        b.learn(0)
    after = network(ours)
    assert after.keys() == theirs.strategy.model.state_dict().keys()
    assert all(torch.equal(after[n], t) for n, t in theirs.strategy.model.state_dict().items())
    blocks = [n for n in start if n.startswith("blocks.")]
    assert blocks and all(torch.equal(after[n], start[n]) for n in blocks)
    assert max(t.abs().max() for n, t in after.items() if "lora_B" in n) > 0
    first = ours.strategy.sums.clone()
    for index in (1, 2):
        ours.learn(index)
        assert ours.strategy.phases(ours.replica.task(index)) == 0
    assert after.keys() == network(ours).keys()
    assert all(torch.equal(after[n], t) for n, t in network(ours).items())
    assert torch.equal(ours.strategy.sums[:2], first[:2])
    assert not any(p.requires_grad for p in ours.strategy.parameters())


def test_the_features_are_the_adapted_networks_or_both():
    b = adapted("simplecil", both=True)
    plain, x = bench(on_weights("simplecil"), {}, "class"), b.stream.prepare(b.stream.tasks[0].test.x)
    for index in range(2):
        b.learn(index)
    strategy = b.strategy.eval()
    with torch.no_grad():
        both, one, other = strategy.features(x), plain.strategy.model.features(x), strategy.model.features(x)
        logits = strategy(x).numpy()
    assert torch.equal(both, torch.cat([one, other], 1)) and not torch.equal(one, other)
    assert {layer.active for layer in strategy.adapted.values()} == {(0,)}

    def found(index):
        with torch.no_grad():
            return strategy.features(b.stream.prepare(b.stream.tasks[index].train.x)).double().numpy()

    f = np.concatenate([found(0), found(1)])
    y = np.concatenate([b.stream.tasks[i].train.y.numpy() for i in range(2)])
    means = np.stack([f[y == c].mean(0) for c in range(4)])
    cosine = both.double().numpy() @ means.T / np.linalg.norm(means, axis=1)
    np.testing.assert_allclose(logits[:, :4], cosine / np.linalg.norm(both.double().numpy(), axis=1)[:, None],
                               rtol=1e-6)
    assert np.isneginf(logits[:, 4:]).all()


def test_ranpac_projects_both():
    b = adapted("ranpac", both=True)
    width = b.strategy.model.head.in_features
    assert b.strategy.projection.shape == (2 * width, 5 * 2 * width)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize(("method", "options"), [("ranpac", {"projections": 20}), ("simplecil", {"both": True}),
                                                 ("fecam", {})])
def test_they_keep_the_rules_on_pretrained_weights_too(method, options, name):
    check(on_weights(method), name, {"adapt": "lora", "rank": 2, **options})


@pytest.mark.parametrize(("method", "options"), [("ranpac", {"projections": 20}), ("simplecil", {"both": True}),
                                                 ("fecam", {})])
def test_a_stack_of_seeds_equals_seed_by_seed(method, options):
    recipe, options = Recipe(optimizer="adam", lr=1e-2, batch_size=8, epochs=2), {"adapt": "lora", **options}
    for seed, member in enumerate(lead(on_weights(method), options, [0, 1], recipe, double=True)):
        alone = lead(on_weights(method), options, [seed], recipe, double=True)[0]
        ours, theirs = member.strategy.state_dict(), alone.strategy.state_dict()
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-7, atol=1e-8, msg=lambda m, n=name: n + m)


def test_a_run_on_weights_trains_adapters_and_head_in_the_first_task_only(tmp_path):
    model = mlp(MLPOptions(width=16), (1, 28, 28), 10)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    spec = build({"methods": ["ranpac:adapt=lora:rank=2:projections=30", "ranpac:projections=30"], "scenario": "class",
                  "model": "mlp:width=16", "weights": str(tmp_path / "weights.pt"), "seeds": 1,
                  "recipe": {"iterations": 3}})
    runner = TrialRunner(ExecutionSettings(data=Path(os.environ["CLBENCH_DATA"])), "cpu", "a test")
    with_it, without = (runner.run(one) for one in plan(spec, discover()))
    assert (with_it.status, without.status) == ("done", "done"), (with_it.failure, without.failure)
    assert with_it.costs.steps == [3, 0, 0, 0, 0] and without.costs.steps == [0] * 5
    adapters = 2 * (784 + 16) + 2 * (16 + 16)
    assert with_it.costs.trainable == [adapters + 16 * 10 + 10, 0, 0, 0, 0]
    assert with_it.costs.bytes[-1]["adapters"] == 4 * adapters


def test_what_is_kept_has_the_adapters():
    b = adapted("slda", rank=2)
    b.learn(0)
    width = b.strategy.model.head.in_features
    kept = measure(b.strategy).parameters
    assert kept["adapters"] == sum(2 * sum(layer.weight.shape) for layer in b.strategy.adapted.values())
    assert kept["heads"] == b.stream.classes * (width + 1)


def test_a_transformer_is_adapted_on_q_and_v():
    b = bench(on_weights("ncm"), {"adapt": "lora"}, "class", model="vit")
    assert {name.rpartition(".")[2] for name in b.strategy.adapted} == {"q", "v"}


@pytest.mark.parametrize(("method", "options"), [(m, o) for m, (_, o) in KINDS.items() if m != "seq-lora"])
def test_refusals_say_the_way_out(method, options):
    cls = KINDS[method][0]
    for base in ("auto", "random", "task1"):
        with pytest.raises(SpecError, match=rf"{method}: adapt = lora adapts a pretrained network, .* pass --weights"):
            cls(make_model(), make_stream_info("class"), options(adapt="lora", base=base))
    with pytest.raises(SpecError, match=f"{method}: rank = 99 exceeds the width"):
        cls(make_model(), make_stream_info("class", pretrained=True), options(adapt="lora", rank=99))
    for unused in ({"rank": 2}, {"adapt": "bottleneck", "rank": 2}):
        with pytest.raises(SpecError, match="rank has an effect only with adapt = lora"):
            validate(options, unused, method, "clbench methods")
    with pytest.raises(ValidationError, match="both is of the adapters of adapt = lora or bottleneck"):
        options(both=True, adapt="none")
    with pytest.raises(SpecError, match=f"{method}: adapt = bottleneck is put parallel to the MLPs of a vision"):
        cls(make_model(), make_stream_info("class", pretrained=True), options(adapt="bottleneck"))


@pytest.mark.parametrize("options", [o for m, (_, o) in KINDS.items() if m != "seq-lora"])
def test_trials_without_adapters_keep_their_keys(options):
    assert not {"adapt", "rank", "both"} & options().settled(False).model_dump().keys()
    assert not {"adapt", "rank", "both"} & options(adapt="none").model_dump().keys()
    assert options(adapt="lora").model_dump().keys() >= {"adapt"}
