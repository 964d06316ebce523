"""Runs that keep the accuracy while tasks are learned: asked for, resumed, asked for later."""

import pytest
from helpers.curves import make_curve

import clbench
from clbench import cli
from clbench.core.registry import discover
from clbench.execution import reuse
from clbench.execution.reuse import merge_records
from clbench.execution.trial_runner import TrialRunner
from clbench.experiment.execution_settings import ExecutionSettings
from clbench.experiment.plan import plan
from clbench.experiment.spec import build
from clbench.persistence import callbacks
from clbench.results.store import STATE, Store

SMALL = {"methods": "er:capacity=20,naive", "benchmark": "helpers.tiny_benchmarks:shifting", "scenario": "domain",
         "model": "mlp:width=16", "epochs": 1, "batch_size": 5, "seeds": 1, "device": "cpu", "threads": 1, "workers": 0}


class Killed(BaseException):
    """Takes the process's death for granted: nothing catches it."""


def run(folder, **settings):
    return clbench.run(**{**SMALL, "out": folder, **settings})


@pytest.mark.slow
def test_what_a_run_keeps_and_that_it_gives_what_it_gave_without(tmp_path):
    plain, seen = run(tmp_path / "plain"), run(tmp_path / "seen", evaluate_every=10, evaluate_samples=40)
    assert [r.facts() for r in plain] == [r.facts() for r in seen] and plain[0].key == seen[0].key
    curve = seen[0].curve
    assert (curve.every, curve.samples) == (10, [40] * 3) and plain[0].curve is None
    assert curve.steps == [list(range(31))] * 3  # all within the first 50
    assert [len(right) for right in curve.right] == [1, 2, 3]
    assert seen[0].costs.train_flops == plain[0].costs.train_flops
    assert len(seen[0].timings.curve) == len(seen[0].timings.curve_cpu) == 3 and min(seen[0].timings.curve) > 0
    assert min(*seen[0].timings.train, *seen[0].timings.train_cpu) > 0
    page = (tmp_path / "seen" / "report.md").read_text()
    assert "Accuracy while tasks are learned" in page and "-steps.svg" in page and "Stability gap" in page
    plain_page = (tmp_path / "plain" / "report.md").read_text().split("## How to read")[0]
    assert not any(words in plain_page for words in ("while tasks are learned", "-steps.svg", "Stability gap"))


@pytest.mark.slow
def test_with_hidden_boundaries_the_curve_is_that_of_the_true_tasks_and_training_notices_nothing(tmp_path):
    plain = run(tmp_path / "plain", boundaries="hidden", seeds=2, stack=2)
    seen = run(tmp_path / "seen", boundaries="hidden", seeds=2, stack=2, evaluate_every=10, evaluate_samples=40)
    assert [r.facts() for r in plain] == [r.facts() for r in seen]
    for record in seen:
        assert [steps[-1] for steps in record.curve.steps] == record.costs.steps
        assert [len(right) for right in record.curve.right] == [len(after) for after in record.curve.after] == [1, 2, 3]


@pytest.mark.slow
def test_results_without_a_curve_are_trained_once_more_and_said_to_be(tmp_path, capsys):
    first = run(tmp_path)
    command = ["run", "--methods", "er:capacity=20,naive", "--benchmark", SMALL["benchmark"], "--scenario", "domain",
               "--model", "mlp:width=16", "--epochs", "1", "--batch-size", "5", "--seeds", "1", "--device", "cpu",
               "--threads", "1", "--workers", "0", "--out", str(tmp_path), "--evaluate-every", "10",
               "--evaluate-samples", "40"]
    assert cli.call([*command, "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert out.count("done, without --evaluate-every 10") == 2
    assert "evaluating while learning: 96 times on 40 test samples" in err
    assert cli.call(command) == 0
    err = " ".join(capsys.readouterr().err.split())
    assert "2 results lack --evaluate-every 10 (on 40 samples a task), which this run needs" in err
    seen, _ = Store(tmp_path).read()
    assert {r.key: r.R for r in seen} == {r.key: r.R for r in first} and all(r.curve for r in seen)
    when = {r.key: r.provenance.started for r in seen}
    for served in ({}, {"evaluate_every": 20, "evaluate_samples": 30}):
        assert {r.key: r.provenance.started for r in run(tmp_path, **served)} == when
    finer = run(tmp_path, evaluate_every=10, evaluate_samples=50)
    assert all(r.curve.samples == [50] * 3 for r in finer)


def test_another_result_is_said_aloud_and_a_failure_costs_no_record(tmp_path):
    before, _ = run(tmp_path)
    standing = reuse.StalenessReport(lacking={before.key: "--evaluate-every 10"})
    told = []
    other = before.model_copy(update={"R": [[0.0] * 3 for _ in before.R]})
    kept = merge_records(standing, before, other, told.append)
    assert "GAVE ANOTHER RESULT (R: " in told[0] and kept.notes[-1] == told[0] and kept.R == other.R
    failed = before.model_copy(update={"status": "failed"})
    assert merge_records(standing, before, failed, told.append) is before and "failed" in told[1]
    assert merge_records(standing, before, before, told.append) == before and len(told) == 2
    assert merge_records(reuse.StalenessReport(), before, other, told.append) is other and len(told) == 2


def test_what_only_the_old_record_has_is_kept_where_the_networks_are_the_same(tmp_path):
    before, _ = run(tmp_path)
    curve = make_curve(dip=30)
    standing = reuse.StalenessReport(lacking={before.key: "--probe"})
    kept = merge_records(standing, before.model_copy(update={"curve": curve}), before, pytest.fail)
    assert kept.curve == curve and kept.R == before.R


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_curve_goes_on_after_an_interruption(tmp_path, monkeypatch, seeds):
    monkeypatch.setattr(callbacks, "SECONDS", 0.0)
    registry = discover()
    group = plan(build({"methods": "er:capacity=40", "seeds": seeds, "scenario": "class", "model": "mlp:width=32",
                        "recipe": {"iterations": 6, "batch_size": 32}}), registry)

    def runs(kill_after=None, **settings):
        def hear(progress):
            if progress.task == kill_after:
                raise Killed

        runner = TrialRunner(ExecutionSettings(data=tmp_path, **settings), "cpu", "a test", registry, None,
                             tmp_path / "checkpoints")
        return runner.run_stack(group, hear)

    asked = {"evaluate_every": 2, "evaluate_samples": 30}
    whole = runs(**asked)
    for member in group:
        (tmp_path / "checkpoints" / member.trial.key / STATE).unlink()
    with pytest.raises(Killed):
        runs(kill_after=3, **asked)
    again = runs(**asked)
    assert [r.curve for r in again] == [r.curve for r in whole] and not again[0].notes
    assert [r.facts() for r in again] == [r.facts() for r in whole]
    other, *_ = runs(evaluate_every=3)
    assert other.R == whole[0].R and other.curve.every == 3 and len(other.curve.after) == 5
    assert other.notes == ["started over after an interruption: it does not have the accuracy while learning that is "
                           "asked for"]
    plain, *_ = runs()
    assert (plain.R, plain.curve, plain.notes) == (other.R, None, other.notes), "it goes on, from that checkpoint"


def test_a_loop_of_its_own_is_watched_at_its_boundaries(tmp_path):
    record, = run(tmp_path, methods="avalanche:Naive", evaluate_every=10)
    assert record.curve.steps == [[0]] * 3 and len(record.curve.after) == 3
    assert "trains by a loop of its own, so its accuracy while learning is known at the boundaries only" in record.notes
