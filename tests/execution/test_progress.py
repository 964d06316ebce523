import io
from types import SimpleNamespace

import pytest
from helpers.records import make_lm_record, make_record
from rich.console import Console

from clbench.execution import progress
from clbench.execution.time_left import read_times
from clbench.execution.until import Round
from clbench.experiment.trial import PlannedTrial, Progress
from clbench.experiment.until import UntilDecided
from clbench.results.provenance import machine


class Terminal(io.StringIO):
    def isatty(self):
        return True


def console(file=None, **environment):
    return Console(file=file or io.StringIO(), width=100, highlight=False, _environ=environment)


def planned(record):
    return PlannedTrial(record.trial, record.label, record.reference)


@pytest.fixture
def now(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))  # others go on with time itself
    return clock


def test_time_left_follows_from_the_share_that_is_over(now):
    records = [make_record(seed=s) for s in range(4)]
    a, *others = [r.key for r in records]
    tally = progress.Tally([planned(r) for r in records])
    assert tally.times() == "getting ready"
    tally.start(a)
    tally.progress(Progress(a, 0, 5, None))
    now[0] += 60
    assert tally.times() == "1:00 elapsed, about ? left"
    tally.progress(Progress(a, 4, 5, None))
    assert tally.share == 0.2
    assert tally.times() == "1:00 elapsed, about 4:00 left"
    for key in (a, *others):
        tally.finish(key)
    assert tally.share == 1
    assert tally.times() == "1:00 elapsed"


def test_plain_lines_one_per_finished_trial(now):
    records = [make_record(seed=0), make_record("ewc", status="diverged")]
    shown = progress.display(console(), [planned(r) for r in records])
    with shown:
        shown.run_started([planned(r) for r in records], [planned(r) for r in records[1:]])
        shown.ready("cpu", 2, 1)
        for record in records:
            shown.started(planned(record))
        shown.progress(Progress(records[0].key, 0, 3, None))
        now[0] += 10
        shown.finished(records[0])
        now[0] += 10
        shown.finished(records[1])
    assert shown.console.file.getvalue().splitlines() == [
        "split-mnist-5k, scenario task: 2 methods x 1 seed = 2 trials, 1 already done",
        "2 workers x 1 thread on cpu",
        "[1/2] lora seed 0: ACC 80.0, 0:10 elapsed, about 0:10 left",
        "ewc seed 0 diverged: DivergedError: the loss is NaN",
        "[2/2] ewc seed 0: diverged, 0:20 elapsed"]


def test_a_later_round_of_a_run_until_decided_knows_its_workers_and_the_times_of_earlier_records(now):
    known, *records = [make_record(seed=s, machine=machine()) for s in range(5)]
    shown = progress.display(console(), [planned(r) for r in records])
    listener = Round(shown, UntilDecided(baseline="best"), {"a note of the first round"})
    listener.known([known])
    listener.ready(known.provenance.device, 2, 1)
    shown.tally.start(records[0].key)
    seconds = read_times(known)[1]
    assert shown.tally.left.seconds(now[0]) == pytest.approx(2 * seconds), "four trials, two at a time"
    assert shown.console.file.getvalue() == ""


def test_a_run_that_says_nothing_for_long_says_where_it_is(now, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.02)
    records = [make_record(seed=s) for s in range(6)]
    shown = progress.PlainDisplay(console(), [planned(r) for r in records])
    for record in records[:5]:
        shown.started(planned(record))
    shown.finished(records[0])
    shown.progress(Progress(records[1].key, 1, 3, 0.912))
    now[0] += 60
    shown.last = now[0]
    with shown:
        assert not shown.over.wait(0.1)
        assert len(shown.console.file.getvalue().splitlines()) == 1  # by the clock no time has passed
        now[0] += 0.03
        for _ in range(500):
            if len(shown.console.file.getvalue().splitlines()) > 1:
                break
            shown.over.wait(0.01)
    assert not shown.thread.is_alive()
    assert shown.console.file.getvalue().splitlines()[1:] == [
        "[1/6] lora seed 1 task 2/3, accuracy 91.2; lora seed 2 starting; lora seed 3 starting; 1 more running; "
        "1:00 elapsed, about 1:00 left"]


def test_a_traceback_is_shown_once_per_method_and_error_and_cut(now):
    records = [make_record(seed=s, status="failed", message="[bold]boom") for s in range(2)]
    trace = "\n".join(f"line {i}" for i in range(30))
    records = [r.model_copy(update={"failure": r.failure.model_copy(update={"traceback": trace})}) for r in records]
    shown = progress.display(console(), [planned(r) for r in records])
    for record in records:
        shown.started(planned(record))
        shown.finished(record)
    text = shown.console.file.getvalue()
    assert text.count("[bold]boom") == 2
    assert text.count("line 29") == 1
    assert "line 17\n" not in text


def test_bars_on_a_terminal_show_the_running_trials(now):
    record = make_record("lora", label="lora:rank=[4]")
    shown = progress.display(console(Terminal(), TERM="xterm"), [planned(record)])
    with shown:
        shown.started(planned(record))
        shown.progress(Progress(record.key, 1, 3, 0.912))
        shown.bars.refresh()
        shown.finished(record)
        shown.bars.refresh()
    text = shown.console.file.getvalue()
    assert "lora:rank=[4] seed 0" in text
    assert "task 2/3, accuracy 91.2" in text
    assert "1/1 done" in text


@pytest.mark.parametrize(("file", "environment"), [(io.StringIO, {"FORCE_COLOR": "1"}), (Terminal, {"TERM": "dumb"})])
def test_what_cannot_redraw_lines_gets_one_per_trial(file, environment, now):
    record = make_record()
    with progress.display(console(file(), **environment), [planned(record)]) as shown:
        shown.started(planned(record))
        shown.finished(record)
    assert shown.console.file.getvalue().splitlines() == [f"[1/1] lora seed 0: {record.result}, 0:00 elapsed"]


def test_scenarios_are_named_where_there_are_several():
    records = [make_record(scenario="task"), make_record(scenario="class")]
    shown = progress.display(console(), [planned(r) for r in records])
    assert list(shown.names.values()) == ["lora task seed 0", "lora class seed 0"]


def test_progress_of_a_language_model_is_in_nll(now):
    record = make_lm_record()
    trial = PlannedTrial(record.trial, record.label, record.reference, metric="nll")
    shown = progress.PlainDisplay(console(), [trial])
    shown.started(trial)
    shown.progress(Progress(record.key, 1, 3, 6.5812))
    assert "lora seed 0 task 2/3, NLL 6.58;" in shown.where()
    shown.finished(record)
    assert "lora seed 0: NLL 1.50," in shown.console.file.getvalue()
