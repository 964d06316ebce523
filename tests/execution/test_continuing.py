"""A trial that had ended learns on: as if it had never ended, where nothing has to grow; else with new outputs."""

import pytest
import torch

import clbench
from clbench import cli
from clbench.core.errors import SpecError, StoreError
from clbench.execution.continuing import continue_trial
from clbench.execution.loading import find_record
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.trial import Resolved
from clbench.report.analysis.notes import title
from clbench.results.store import STATE, Store

SHIFTING, PICTURES = "helpers.tiny_benchmarks:shifting", "helpers.tiny_benchmarks:pictures"
METHODS = "naive,ewc,er,lora"


def train(folder, benchmark, scenario, methods=METHODS, **more):
    return {r.label: r for r in clbench.run(**{
        "methods": methods, "benchmark": benchmark, "model": "mlp:width=12", "scenario": scenario, "seeds": 1,
        "iterations": 4, "batch_size": 12, "workers": 0, "keep": "state", "out": folder, **more})}


def go_on(folder, record, benchmark, **more):
    return continue_trial(folder, record.key, Resolved(name=benchmark), ExecutionSettings(), "cpu", **more)


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("domain")
    return folder, train(folder, SHIFTING, "domain"), train(folder / "twice", f"{SHIFTING}_twice", "domain",
                                                            keep="nothing")


@pytest.mark.parametrize("label", METHODS.split(","))
def test_where_outputs_are_shared_it_is_as_if_the_stream_had_been_one(domain, label):
    folder, first, twice = domain
    whole, made = twice[label].R, go_on(folder, first[label], SHIFTING)
    assert made.status == "done" and made.label == label
    assert [row[3:] for row in whole[3:]] == made.R
    assert [made.earlier.before, *made.earlier.after] == [row[:3] for row in whole[3:]]
    assert made.trial.continues.parent == first[label].key and made.trial.continues.tasks == 3
    assert Store(folder).get(made.key) == made
    assert find_record(Store(folder), f"{label}/0").key == first[label].key  # the name is still the parent's
    assert "shifting after helpers.tiny" in title(made)
    with pytest.raises(StoreError, match=r"has gone on to helpers\.tiny_benchmarks:shifting before"):
        go_on(folder, first[label], SHIFTING)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return folder, train(folder, PICTURES, "class,task", "er,lora,slca", out=folder)


def in_scenario(folder, label, scenario):
    return next(r for r in Store(folder).read()[0] if r.trial.scenario == scenario and r.label == label
                and r.trial.continues is None)


@pytest.mark.parametrize("scenario", ["class", "task"])
@pytest.mark.parametrize("label", ["er", "lora"])
def test_outputs_grow_and_what_was_known_is_known_before_it_goes_on(pictures, label, scenario, tmp_path):
    folder, _ = pictures
    record = in_scenario(folder, label, scenario)
    made = go_on(folder, record, PICTURES, out=tmp_path)
    assert made.earlier.before == record.R[-1]
    assert made.stream.classes == [[4, 5], [6, 7]] and len(made.R) == 3
    old, new = clbench.load_model(folder, record.key), clbench.load_model(tmp_path, made.key)
    assert (old.header.outputs, new.header.outputs) == (4, 8)
    if label == "er":  # the memory of the old tasks came along
        assert made.costs.replay_samples[-1] > 0
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    found = new.predict(images, task=3 if scenario == "task" else None)
    assert set(found.classes) <= ({6, 7} if scenario == "task" else set(range(8)))
    again = go_on(tmp_path, made, PICTURES)  # a child goes on too
    assert again.trial.continues.tasks == 4 and again.stream.classes == [[8, 9], [10, 11]]
    assert any("what became of the old tasks is not known" in note for note in again.notes)


def test_what_cannot_go_on_is_refused_in_a_line(pictures, domain, tmp_path):
    folder, _ = pictures
    with pytest.raises(SpecError, match=r"slca cannot learn on with more outputs: it keeps class_\w+ "):
        go_on(folder, in_scenario(folder, "slca", "class"), PICTURES)
    record = in_scenario(folder, "er", "class")
    with pytest.raises(SpecError, match=r"has samples \[1, 6, 6\] .* the model takes \[3, 16, 16\]"):
        go_on(folder, record, SHIFTING)
    path = Store(folder).artifacts / record.key / STATE
    content = path.read_bytes()
    path.unlink()
    with pytest.raises(StoreError, match="run the experiment again with --keep state"):
        go_on(folder, record, PICTURES)
    path.write_bytes(content[:200])
    with pytest.raises(StoreError, match="cannot be read"):
        go_on(folder, record, PICTURES)
    path.write_bytes(content)


def test_the_commands(pictures, tmp_path, capsys):
    folder, _ = pictures
    record = in_scenario(folder, "er", "class")
    assert cli.call(["continue", str(folder), record.key, "--benchmark", PICTURES, "--out", str(tmp_path),
                     "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert f"continues er/0 ({record.key}), which had learned 2 tasks" in out and "old tasks: " in out
    assert cli.call(["export", str(tmp_path), "--to", str(tmp_path / "home")]) == 0
    assert "model.safetensors (" in capsys.readouterr().out
    assert cli.call(["report", str(tmp_path)]) == 0
    assert cli.call(["continue", str(folder), record.key, "--benchmark", "split-mnits"]) == 2
    assert "did you mean 'split-mnist'" in capsys.readouterr().err
