import pytest
import torch
from helpers.records import make_record

import clbench
from clbench.core.errors import SpecError, StoreError
from clbench.core.registry import discover, installed
from clbench.data.stream import load_stream
from clbench.execution.loading import find_record
from clbench.results.store import Store


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


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Return a store with trials of two scenarios."""
    store = Store(tmp_path_factory.mktemp("study"))
    for method, options in (("er", {"capacity": 500}), ("ewc", {}), ("lora", {"rank": 4})):
        for scenario in ("task", "class"):
            for seed in (0, 1):
                store.write(make_record(method, seed, options=options, scenario=scenario))
    return store


@pytest.mark.parametrize("name", ["lora/class/1", "LoRA r=4/class/1", "lora R=4/class/1", "KEY"])
def test_a_trial_of_a_run_with_two_scenarios_can_be_named(study, name):
    expected = make_record("lora", 1, options={"rank": 4}, scenario="class")
    assert find_record(study, name.replace("KEY", expected.key[:4]), installed()).key == expected.key


def test_the_names_of_several_trials_can_be_passed_as_they_are_shown(study):
    with pytest.raises(StoreError, match="has several trials that fit: name one of ") as caught:
        find_record(study, "ER (500)/0", installed())
    names = str(caught.value).rpartition("name one of ")[2].split(", ")
    assert sorted(name.partition(" ")[0] for name in names) == ["er/class/0", "er/task/0"]
    for name in names:
        assert f"({find_record(study, name.partition(' ')[0], installed()).key})" in name


@pytest.mark.parametrize(("name", "closest"), [("ewc/clas/0", "ewc/class/0"), ("lra/task/1", "lora/task/1")])
def test_an_unknown_trial_is_answered_with_the_most_similar_names(study, name, closest):
    with pytest.raises(StoreError, match=f"has no finished trial '{name}': name one of {closest} ") as caught:
        find_record(study, name, installed())
    assert str(caught.value).endswith(" and 8 others") and str(caught.value).count("(") == 4


def test_a_key_needs_4_characters(study):
    key = make_record("er", options={"capacity": 500}).key
    with pytest.raises(StoreError, match=rf"no finished trial '{key[:3]}' \(a key needs at least 4 characters\)"):
        find_record(study, key[:3], installed())
