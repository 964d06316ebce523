"""Runs that add seeds until decided: which trials they run, how they go on, and what they refuse."""

import json
from itertools import count
from types import SimpleNamespace

import helpers.pretended
import numpy as np
import pytest
from helpers.pretended import ACC, RUN
from helpers.records import make_record

import clbench
from clbench.core.errors import SpecError
from clbench.execution import run, until
from clbench.experiment.spec import build
from clbench.experiment.until import UntilDecided
from clbench.report.analysis.facts import facts
from clbench.report.analysis.grouping import group_by_setting
from clbench.results.looks import read
from clbench.results.records import Failure
from clbench.results.store import Store

NOISE = np.random.default_rng(3).normal(0, 0.01, (5, 40))  # of each method and seed


@pytest.fixture
def go(monkeypatch, tmp_path):
    """Run methods whose ACC is 0.5 with noise, plus an advantage; return the results."""
    monkeypatch.setitem(run.EXECUTORS, "local", helpers.pretended.__name__)
    for module in (run, until):
        monkeypatch.setattr(module, "usable_cores", lambda: 1)
    monkeypatch.setattr(run, "write_report", lambda ready: run.looks.note(ready.store.directory, ready.study()))
    RUN.clear()

    def start(advantages, out="run", **settings):
        ACC.clear()
        for i, (label, more) in enumerate(advantages.items()):
            ACC[label] = more if callable(more) else lambda seed, i=i, more=more: 0.5 + more + NOISE[i, seed]
        return clbench.run(device="cpu", out=tmp_path / out, progress=False,
                           **{"methods": list(advantages), "until": "decided", "max_seeds": 12, **settings})

    return start


def seeds(results):
    found = {}
    for record in results:
        found.setdefault(record.label, []).append(record.trial.seed)
    return found


def test_only_what_is_open_gets_more_seeds_and_the_baseline_as_many(go):
    results = go({"naive": 0, "er": 0.45, "ewc": 0.012, "lwf": 0.0})
    found = seeds(results)
    assert found["er"] == [0, 1, 2]  # at the first look
    assert found["lwf"] == found["naive"] == list(range(12))
    assert 3 < len(found["ewc"]) <= 12
    assert sorted(RUN) == sorted((label, seed) for label, own in found.items() for seed in own)  # each once
    told = facts(group_by_setting(results)[0])
    assert {p.method: p.verdict for p in told.baseline.pairs} == {"er": "better", "ewc": "better", "lwf": "open"}
    assert all(p.test == "sequential" for p in told.baseline.pairs)
    assert {r.until for r in results} == {UntilDecided(first=3, most=12)}


def test_an_interrupted_run_goes_on_to_the_same_seeds_and_verdicts(go):
    whole = go({"naive": 0, "ewc": 0.012, "lwf": 0.0}, out="whole")

    class Stop(Exception):
        pass

    calls = count()

    def stops(seed):
        if next(calls) == 7:
            raise Stop
        return 0.5 + NOISE[0, seed]

    with pytest.raises(Stop):
        go({"naive": stops, "ewc": 0.012, "lwf": 0.0}, out="parts")
    again = go({"naive": 0, "ewc": 0.012, "lwf": 0.0}, out="parts")
    assert seeds(again) == seeds(whole)
    assert facts(group_by_setting(again)[0]) == facts(group_by_setting(whole)[0])
    RUN.clear()
    assert seeds(go({"naive": 0, "ewc": 0.012, "lwf": 0.0}, out="parts")) == seeds(whole)
    assert RUN == []


def test_a_gap_that_an_interrupt_has_left_is_filled(go, tmp_path):
    go({"naive": 0, "lwf": 0.0}, max_seeds=6)
    gone = next(r for r in clbench.load(tmp_path / "run") if (r.label, r.trial.seed) == ("lwf", 4))
    Store(tmp_path / "run").path(gone.key).unlink()
    RUN.clear()
    assert seeds(go({"naive": 0, "lwf": 0.0}, max_seeds=6))["lwf"] == list(range(6))
    assert RUN == [("lwf", 4)]


def test_the_baselines_last_seeds_are_run_after_an_interruption(go, tmp_path):
    go({"naive": 0, "lwf": 0.0}, max_seeds=6)
    for record in clbench.load(tmp_path / "run"):
        if record.label == "naive" and record.trial.seed >= 4:  # lwf has all of its seeds
            Store(tmp_path / "run").path(record.key).unlink()
    RUN.clear()
    assert seeds(go({"naive": 0, "lwf": 0.0}, max_seeds=6))["naive"] == list(range(6))
    assert sorted(RUN) == [("naive", 4), ("naive", 5)]


def test_a_run_of_which_every_trial_fails_ends_with_its_failures(go):
    results = go({"naive": lambda _: None, "lwf": lambda _: None})
    assert {r.status for r in results} == {"failed"} and seeds(results) == {"naive": [0, 1, 2], "lwf": [0, 1, 2]}


def test_what_another_process_runs_with_other_code_does_not_end_the_run(go, tmp_path, monkeypatch):
    execute = helpers.pretended.execute

    def beside(todo, plan, listener):
        for planned in todo:
            if (planned.label, planned.trial.seed) == ("lwf", 2):  # the other process finishes it first
                store, other = Store(tmp_path / "run"), []
                execute([planned], SimpleNamespace(claim=lambda _: True),
                        SimpleNamespace(started=lambda _: None, finished=other.append))
                store.write(other[0])
                monkeypatch.setattr(run, "describe_changes", lambda *_: ["the method's code"])
            execute([planned], plan, listener)
            monkeypatch.setattr(run, "describe_changes", lambda *_: [])

    monkeypatch.setattr(helpers.pretended, "execute", beside)
    results = go({"naive": 0, "lwf": 0.0}, max_seeds=6)
    assert seeds(results) == {"naive": list(range(6)), "lwf": list(range(6))}
    assert {r.trial.seed for r in results if r.stale} == {2}


def test_an_earlier_record_that_is_kept_gets_the_new_label_and_the_checkpoint_stays(go, tmp_path, monkeypatch):
    go({"naive": 0}, until=None, max_seeds=None, seeds=2, scenario="class")

    def dies(todo, plan, listener):
        for planned in todo:
            if plan.claim(planned):
                (Store(tmp_path / "run").checkpoints / planned.trial.key).mkdir(parents=True)
                record = make_record("naive", planned.trial.seed, status="failed")
                listener.started(planned)
                listener.finished(record.model_copy(update={
                    "trial": planned.trial, "key": planned.trial.key, "label": planned.label,
                    "failure": Failure(type="WorkerDied", message="killed")}))

    monkeypatch.setattr(helpers.pretended, "execute", dies)
    results = go({}, methods=[{"name": "naive", "label": "mine"}], until=None, max_seeds=None, seeds=2,
                 scenario="class", probe=True)
    assert [(r.label, r.status) for r in results] == [("mine", "done")] * 2
    assert len(list(Store(tmp_path / "run").checkpoints.iterdir())) == 2


def test_the_best_of_all_is_found_by_dropping_what_is_worse(go):
    results = go({"er": 0.1, "ewc": 0.0, "lwf": 0.07}, baseline="best")
    found = seeds(results)
    assert len(found["ewc"]) < len(found["lwf"]) == len(found["er"])
    best = facts(group_by_setting(results)[0]).best
    assert (best.method, best.open, best.tests) == ("er", (), 3)


def test_equal_methods_and_methods_that_fail_end_early(go):
    same = NOISE[0]
    results = go({"naive": 0, "lwf": lambda seed: 0.5 + same[seed], "ewc": lambda _: None})
    assert seeds(results) == {"naive": [0, 1, 2, 3, 4], "lwf": [0, 1, 2, 3, 4], "ewc": [0, 1, 2]}
    assert RUN.count(("ewc", 0)) == 1  # not tried again in each round


def test_a_method_that_joins_later_gets_its_own_seeds(go):
    go({"naive": 0, "er": 0.3})
    results = go({"naive": 0, "er": 0.3, "lwf": 0.0})
    assert {label: len(own) for label, own in seeds(results).items()} == {"naive": 12, "er": 3, "lwf": 12}


def test_several_workers_get_a_seed_each(go):
    results = go({"naive": 0, "lwf": 0.0}, workers=8, max_seeds=8)
    assert RUN[6:] == [(label, seed) for seed in (3, 4, 5, 6) for label in ("naive", "lwf")] + [
        ("naive", 7), ("lwf", 7)]
    assert len(results) == 16


@pytest.mark.parametrize(("settings", "message"), [
    ({"max_seeds": 20}, r"were made by --until decided --max-seeds 12 --seeds 3, but this run has --until decided "
                        r"--max-seeds 20"),
    ({"baseline": "er"}, r"A rule must stay the same after its first interim analysis"),
    ({"seeds": "100,101,102"}, r"has results of seed 0-11, and this rule takes 100-111"),
    ({"seeds": 2}, r"starts with at least 3 seeds, got 2: leave --seeds out"),
    ({"max_seeds": 4, "seeds": 5}, r"--max-seeds 4 is less than the 5 seeds to start with"),
    ({"baseline": "err"}, r"no method 'err' in the experiment; did you mean 'er'\? \(its methods are naive,"),
    ({"shard": "1/2"}, r"--shard and --until do not go together"),
])
def test_what_no_rule_allows_is_refused(go, settings, message):
    go({"naive": 0, "lwf": 0.0, "er": 0.3})
    RUN.clear()
    with pytest.raises(SpecError, match=message):
        go({"naive": 0, "lwf": 0.0, "er": 0.3}, **settings)
    assert RUN == []


@pytest.mark.parametrize("given", [{"max_seeds": 12}, {"baseline": "naive"}])
def test_a_file_that_says_how_seeds_are_added_but_not_that_they_are_is_refused(given):
    with pytest.raises(SpecError, match=f'{next(iter(given))} goes with until = "decided"'):
        build({"methods": "naive,er", **given})
    with pytest.raises(SpecError, match="no rule 'decide'; did you mean 'decided'"):
        build({"methods": "naive,er", "until": "decide"})


def test_seeds_that_are_added_after_a_report_say_so(go, tmp_path):
    plain = {"until": None, "max_seeds": None}
    go({"naive": 0, "lwf": 0.0}, seeds=3, **plain)
    assert not any(r.seen for r in go({"naive": 0, "lwf": 0.0, "er": 0.3}, seeds=3, **plain))  # another method
    results = go({"naive": 0, "lwf": 0.0}, seeds=5, **plain)
    assert {r.trial.seed: r.seen for r in results} == {0: [], 1: [], 2: [], 3: [0, 1, 2], 4: [0, 1, 2]}
    notes = clbench.report.build(results).sections[0].notes
    assert notes[0].startswith("Seeds 3, 4 were added after a report had shown seeds 0-2. Intervals and tests assume a "
                               "number of seeds that was fixed in advance")
    assert ("Caution", "Seeds 3, 4 were added after an interim analysis; the tests do not account for that.") in (
        clbench.report.build(results).sections[0].headline)
    log = [(line["event"], line["seeds"]) for line in read(tmp_path / "run")]
    assert log == [("asked", [0, 1, 2]), ("report", {"lwf": [0, 1, 2], "naive": [0, 1, 2]}),
                   ("report", {"er": [0, 1, 2], "lwf": [0, 1, 2], "naive": [0, 1, 2]}), ("asked", [3, 4]),
                   ("report", {"er": [0, 1, 2], "lwf": list(range(5)), "naive": list(range(5))})]


def test_what_was_asked_for_beforehand_or_could_show_nothing_is_no_look(go, tmp_path):
    plain = {"until": None, "max_seeds": None}
    go({"naive": 0, "lwf": 0.0}, seeds=1, **plain)  # a trial run
    assert not any(r.seen for r in go({"naive": 0, "lwf": 0.0}, seeds=4, **plain))
    folder = tmp_path / "run"
    for record in clbench.load(folder):  # as if it had been interrupted, and a report looked at
        if record.trial.seed > 1:
            Store(folder).path(record.key).unlink()
    run.looks.note(folder, clbench.load(folder))
    assert not any(r.seen for r in go({"naive": 0, "lwf": 0.0}, seeds=4, **plain))


def test_a_report_of_a_folder_from_before_there_was_a_log_counts_as_a_look(go, tmp_path):
    plain = {"until": None, "max_seeds": None}
    go({"naive": 0, "lwf": 0.0}, seeds=2, **plain)
    (tmp_path / "run" / "looks.jsonl").unlink()
    (tmp_path / "run" / "report.md").write_text("as it was\n")
    results = go({"naive": 0, "lwf": 0.0}, **{**plain, "until": "decided", "max_seeds": 6})
    assert {r.trial.seed for r in results if r.seen} == {2, 3, 4, 5}
    section = clbench.report.build(results).sections[0]
    notes = " ".join(section.notes)
    assert "Intervals and tests assume a rule for adding seeds that was fixed in advance" in notes
    assert ("Caution", "Seeds 2-5 were added after an interim analysis; tests assume a rule for adding seeds that was "
            "chosen before.") in section.headline
    assert "hold whenever one stops" not in notes and "With --until decided" not in notes


def test_messages_are_about_the_methods_of_the_run_only(go, monkeypatch):
    go({"naive": 0, "er": 0.3, "lwf": 0.0}, until=None, max_seeds=None, seeds=3)
    messages, lines = [], until.lines
    monkeypatch.setattr(until, "lines", lambda *args: messages.extend(lines(*args)) or lines(*args))
    go({"naive": 0, "ewc": 0.0}, max_seeds=4)
    assert messages == ["open after 3 seeds: ewc (against naive); seeds are added",
                        "open after 4 seeds: ewc (against naive), the most that were to be added"]


def test_a_method_gets_its_seeds_if_reports_show_its_label_in_another_form(go):
    spaced, weak, strong = ({"name": "ewc", "label": label, "options": {"strength": strength}}
                            for label, strength in (("my  ewc", 1), ("mine", 2), ("mine", 3)))
    for method in (spaced, weak, strong):  # the last two share a label
        results = go({"naive": 0, method["label"]: 0}, methods=["naive", method], max_seeds=4)
        assert seeds(results) == {"naive": [0, 1, 2, 3], method["label"]: [0, 1, 2, 3]}


def test_the_baseline_of_a_rule_is_one_method(go):
    def with_baseline(label, strength):
        methods = ["naive", "lwf", {"name": "ewc", "label": label, "options": {"strength": strength}}]
        return go({"naive": 0, "lwf": 0, label: 0}, out=label, methods=methods, baseline=label, max_seeds=4)

    results = with_baseline("my  ewc", 1)
    assert group_by_setting(results)[0].baseline == "my ewc"
    assert seeds(results)["my  ewc"] == [0, 1, 2, 3]
    with pytest.raises(SpecError, match="results of another method with the label 'my  ewc'"):
        with_baseline("my  ewc", 2)


def test_the_log_of_a_folder_is_no_more_than_lines_of_json(go, tmp_path):
    go({"naive": 0, "er": 0.3})
    lines = [json.loads(line) for line in (tmp_path / "run" / "looks.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["asked", "report"]
    assert lines[0]["seeds"] == list(range(12))  # the rule fixes all that there may be
