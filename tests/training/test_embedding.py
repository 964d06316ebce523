import errno
import os
import shlex

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clbench.cli import call
from clbench.core.errors import ClbenchError, DataError, StoreError
from clbench.core.registry import discover
from clbench.data.stream import load_stream
from clbench.execution.embedding import PARTS, embed, prepare
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build

RULES = ["ncm", "simplecil", "slda", "ranpac:projections=40", "fecam", "acil:projections=40"]


def trials(benchmark, model, methods=("naive",), **settings):
    spec = build({"benchmark": f"helpers.tiny_benchmarks:{benchmark}", "model": model, "methods": list(methods),
                  "seeds": [0], **settings})
    return [planned for planned in plan(spec, discover())]


def job(tmp_path, benchmark, model, batch=None, **settings):
    return prepare(trials(benchmark, model, **settings)[0].trial, ExecutionSettings(data=tmp_path), "cpu", discover(),
                   batch)


def weights_for(tmp_path, benchmark, model):
    """Write a file of weights that are not those of the seed."""
    network = job(tmp_path, benchmark, model).network
    torch.manual_seed(5)
    save_file({n: (t * (1 + 0.3 * torch.rand(t.shape)) if t.is_floating_point() else t).contiguous()
               for n, t in network.state_dict().items()}, tmp_path / "w.safetensors")
    return str(tmp_path / "w.safetensors")


@pytest.mark.parametrize(("benchmark", "model"), [("flat", "mlp:width=8"), ("pictures", "cnn:channels=4:size=8"),
                                                  ("shifting", "cnn:channels=4"),
                                                  ("pictures", "timm:resnet10t:size=32")])
def test_features_are_those_of_the_network_on_prepared_inputs(tmp_path, benchmark, model):
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    weights = weights_for(tmp_path, benchmark, model)
    todo = job(tmp_path, benchmark, model, weights=weights, recipe={"precision": "fp32"})
    done = embed(todo, tmp_path / "x.safetensors")
    found = load_file(tmp_path / "x.safetensors")
    assert (done.computed, done.reused) == (len(found["X_train"]) + len(found["X_test"]), 0)
    trial = trials(benchmark, model, weights=weights)[0].trial
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "")
    stream = runner.stream(trial)
    network = runner.build(trial, stream)[0].model.eval()
    for part in ("train", "test"):
        x = torch.cat([network.features(stream.prepare(getattr(task, part).x)).detach() for task in stream.tasks])
        torch.testing.assert_close(found[f"X_{part}"], x)
        assert found[f"X_{part}"].dtype == torch.float32 and found[f"y_{part}"].dtype == torch.int64
        sizes = [len(getattr(task, part)) for task in stream.tasks]
        assert torch.equal(found[f"task_{part}"], torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes)))
    labels = [0, 1] if benchmark == "flat" else [0, 1, 2, 3] if benchmark == "shifting" else [0, 1]
    assert found["y_train"][found["task_train"] == 0].unique().tolist() == labels  # the benchmark's own
    last = found["y_train"][found["task_train"] == found["task_train"].max()].unique().tolist()
    assert last == ([0, 1, 2, 3] if benchmark == "shifting" else [2, 3])


@pytest.mark.parametrize("stop", [1, 3, 5, 8])
def test_what_is_interrupted_goes_on_and_ends_bit_identical(tmp_path, stop):
    weights = weights_for(tmp_path, "flat", "mlp:width=8")
    embed(job(tmp_path, "flat", "mlp:width=8", 15, weights=weights), tmp_path / "whole.npz")
    shown = []

    def stopping(done, found):
        shown.append((done, found))
        if len(shown) == stop + 1:
            raise KeyboardInterrupt

    out = tmp_path / "x.npz"
    with pytest.raises(KeyboardInterrupt):
        embed(job(tmp_path, "flat", "mlp:width=8", 15, weights=weights), out, stopping)
    assert not out.exists()
    part = max((tmp_path / "x.npz.parts").glob("*.f32"), key=lambda path: path.name == "X_test.f32")
    part.write_bytes(part.read_bytes()[:-7])  # as a kill in the middle of a row leaves it
    found = []
    done = embed(job(tmp_path, "flat", "mlp:width=8", 15, weights=weights), out, lambda *args: found.append(args))
    assert done.reused > 0 or stop < 3
    assert done.reused + done.computed == 160 and found[-1] == (160, done.reused)
    assert out.read_bytes() == (tmp_path / "whole.npz").read_bytes()
    assert not (tmp_path / "x.npz.parts").exists()


@pytest.mark.parametrize("place", ["open", "write_features"])
def test_a_full_disk_is_an_error_after_which_the_command_continues(tmp_path, monkeypatch, place):
    out = tmp_path / "x.npz"

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    module = "clbench.data.feature_file" if place == "open" else "clbench.execution.embedding"
    with monkeypatch.context() as patch:
        patch.setattr(f"{module}.{place}", full, raising=False)
        with pytest.raises(StoreError, match=r"cannot write .*x\.npz: No space left on device; run the same command"):
            embed(job(tmp_path, "flat", "mlp:width=8", 15), out)
    assert not out.exists()
    assert embed(job(tmp_path, "flat", "mlp:width=8", 15), out).reused == (0 if place == "open" else 160)


def test_another_job_does_not_go_on_from_the_parts(tmp_path):
    def stop(done, found):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(job(tmp_path, "flat", "mlp:width=8"), tmp_path / "x.npz", stop)
    for other in ({"seeds": [1]}, {"recipe": {"precision": "bf16"}}):
        kept = []
        with pytest.raises(KeyboardInterrupt):
            embed(job(tmp_path, "flat", "mlp:width=8", **other), tmp_path / "x.npz", lambda done, found, to=kept: (
                to.append(found), stop(done, found)))
        assert set(kept) == {0}


def test_bf16_is_near(tmp_path):
    for precision in ("fp32", "bf16"):
        embed(job(tmp_path, "pictures", "cnn:channels=4", recipe={"precision": precision}),
              tmp_path / f"{precision}.safetensors")
    exact, near = (load_file(tmp_path / f"{p}.safetensors")["X_train"] for p in ("fp32", "bf16"))
    assert not torch.equal(exact, near)
    torch.testing.assert_close(exact, near, rtol=0.05, atol=0.05)


def test_what_a_reader_of_the_options_would_not_think_is_told(tmp_path):
    notes = job(tmp_path, "flipping", "cnn:channels=4").notes
    assert any("one draw of each sample" in note for note in notes)
    assert any("untrained network" in note for note in notes)
    with pytest.raises(ClbenchError, match="is a head alone, which has no features but its inputs"):
        job(tmp_path, "flat", "linear")


def test_a_validation_split_of_the_features_keeps_groups_whole(tmp_path):
    y, group = np.repeat(np.arange(4), 30), np.arange(120) // 3  # three samples of each patient
    x = np.random.default_rng(0).integers(0, 255, (120, 3, 8, 8), dtype=np.uint8)
    x[:, :, :4] = group[:, None, None, None]
    np.savez(tmp_path / "photos.npz", X=x, y=y, group=group)
    spec = build({"benchmark": f"arrays:{tmp_path}/photos.npz", "model": "cnn:channels=2", "methods": ["naive"]})
    todo = prepare(plan(spec, discover())[0].trial, ExecutionSettings(data=tmp_path), "cpu", discover())
    out = tmp_path / "x.safetensors"
    embed(todo, out)
    found = load_file(out)
    pixel = torch.cat([samples.x[:, 0, 0, 0] for samples in todo.samples("train")])  # the group by another way
    assert len({*zip(found["group_train"].tolist(), pixel.tolist(), strict=True)}) == len(pixel.unique())
    read = load_stream(plan(build({"benchmark": f"arrays:{out}", "model": "linear", "methods": ["naive"]}),
                            discover())[0].trial.benchmark, "task", 0, tmp_path, discover(), validation=0.2)
    sides = [{tuple(row.tolist()) for task in read.tasks for row in getattr(task, part).x} for part in PARTS]
    group_of = {tuple(row.tolist()): group for row, group in zip(found["X_train"], pixel.tolist(), strict=True)}
    train, held_out = ({group_of[row] for row in side} for side in sides)
    assert held_out and not train & held_out


def test_features_that_are_not_finite_are_refused(tmp_path):
    todo = job(tmp_path, "flat", "mlp:width=8")
    todo.network.blocks[0].body[1].bias.fill_(float("inf"))
    with pytest.raises(DataError, match="features of task 1's train samples are not finite"):
        embed(todo, tmp_path / "x.npz")


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_rules_on_features_answer_as_on_the_frozen_network(tmp_path, scenario, monkeypatch):
    """To the sample: what `linear` gives on the file is what the frozen network gives on the benchmark."""
    weights = weights_for(tmp_path, "shifting", "cnn:channels=2")
    embed(job(tmp_path, "shifting", "cnn:channels=2", weights=weights), tmp_path / "x.safetensors")
    monkeypatch.setenv("CLBENCH_TEST_FEATURES", str(tmp_path / "x.safetensors"))
    runner = TrialRunner(ExecutionSettings(data=tmp_path), "cpu", "")
    records = [[runner.run(planned) for planned in planned_ones] for planned_ones in (
        trials("shifting", "cnn:channels=2", RULES, scenario=scenario, weights=weights),
        trials("embedded", "linear", RULES, scenario=scenario))]
    for before, after in zip(*records, strict=True):
        assert (before.status, after.status) == ("done", "done"), (before.failure, after.failure)
        learned = [[row[:index] for index, row in enumerate(record.R)] for record in (before, after)]
        assert learned[0] == learned[1], before.label
        assert after.costs.steps == [0, 0, 0]
    assert len({str(record.R) for record in records[1]}) == len(RULES)  # and they are not all the same


def test_the_command(tmp_path, capsys):
    out = tmp_path / "deep" / "my x.npz"
    args = ["embed", "helpers.tiny_benchmarks:flat", "--model", "mlp:width=8", "--data", str(tmp_path)]
    assert call([*args, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "2 tasks, 80 training and 80 test samples; mlp on cpu" in said.err
    assert "160 samples in" in said.out and f"features: {out} (8 of each sample" in said.out
    assert f"clbench run --benchmark {shlex.quote(f'arrays:{out}')} --model linear --methods ncm,slda" in said.out
    assert call([*args, "--out", str(tmp_path / "x.pt")]) == 2
    assert "kept as .safetensors or .npz" in capsys.readouterr().err


@pytest.mark.parametrize("sites", [False, True])
def test_the_next_command_has_the_scenario_of_the_benchmark(tmp_path, capsys, sites):
    lines = [f"{i},{-i},{'ab'[i % 2]},{'xyz'[i % 3]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["u,v,site,label", *lines]))
    benchmark = f"table:{tmp_path}/t.csv:" + ("task_column=site" if sites else "leave_out=site:tasks=3")
    assert call(["embed", benchmark, "--model", "mlp:width=4", "--data", str(tmp_path), "--out",
                 str(tmp_path / "x.npz")]) == 0
    assert capsys.readouterr().out.endswith("naive,joint --scenario domain\n" if sites else "naive,joint\n")


def test_an_interrupted_command_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    from clbench.execution.embedding import EmbeddingProgress

    args = ["embed", "helpers.tiny_benchmarks:flat", "--model", "mlp:width=8", "--data", str(tmp_path),
            "--batch-size", "10", "--out", str(tmp_path / "x.npz")]
    with monkeypatch.context() as patch:
        def interrupted(self, done, found):
            if done == 30:
                raise KeyboardInterrupt

        patch.setattr(EmbeddingProgress, "__call__", interrupted)
        assert call(args) == 130
    assert f"{tmp_path / 'x.npz'}.parts has what is done. Run the same command again" in capsys.readouterr().err
    assert call(args) == 0
    assert "130 samples in" in (said := capsys.readouterr().out) and "30 more from before" in said
