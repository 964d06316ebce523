import pytest
import torch

import clbench
from clbench.core.errors import SpecError, StoreError
from clbench.core.registry import discover
from clbench.data.stream import load_stream


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    clbench.run(methods="lora,independent,naive", benchmark="helpers.tiny_benchmarks:pictures", model="mlp:width=16",
                seeds=1, epochs=3, batch_size=8, workers=0, out=folder)
    return folder


@pytest.mark.parametrize("label", ["lora", "independent"])
def test_a_network_answers_as_the_trial_did(run, label, tmp_path):
    records = {r.label: r for r in clbench.run(
        methods="lora,independent,naive", benchmark="helpers.tiny_benchmarks:pictures", model="mlp:width=16", seeds=1,
        epochs=3, batch_size=8, workers=0, out=run)}
    record = records[label]
    stream = load_stream(record.trial.benchmark, "task", 0, tmp_path, discover())
    for task, part in enumerate(stream.tasks):
        network = clbench.load_model(run, f"{label}/0", task=task)
        assert not network.training and not any(p.requires_grad for p in network.parameters())
        right = (network(stream.prepare(part.test.x)).argmax(1) == part.test.y).double().mean().item()
        assert right == pytest.approx(record.R[-1][task])
    last = clbench.load_model(run, record.key[:6])
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(last(x), clbench.load_model(run, f"{label}/0", task=1)(x))


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(SpecError, match=r"network of naive was not saved\. Without --keep models only independent and "
                                        "lora save"):
        clbench.load_model(run, "naive/0")
    with pytest.raises(SpecError, match="lora/0 has learned tasks 0 to 1, not 2"):
        clbench.load_model(run, "lora/0", task=2)
    with pytest.raises(StoreError, match=r"has several trials that fit: name one of lora/0"):
        clbench.load_model(run)
    with pytest.raises(StoreError, match=r"has no finished trial 'lora/1': name one of lora/0"):
        clbench.load_model(run, "lora/1")
    with pytest.raises(StoreError, match=r"name one of \(none\)"):
        clbench.load_model(tmp_path)
