import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.hostile import install_hostile

from clbench.core.registry import discover
from clbench.execution import interrupts, run
from clbench.execution.workers.plan import Listener
from clbench.experiment.spec import build
from clbench.results.store import Store


def send(number=signal.SIGINT):
    """Send this process a signal; Python runs the handler before the next line."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_until_what_is_held_is_over(number):
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts.handle_signals():
        with interrupts.defer_signals(wake=lambda: steps.append("woken")):
            with interrupts.defer_signals():
                send(number)
            steps.append("written")
        steps.append("not reached")
    assert steps == ["woken", "written"]
    with interrupts.defer_signals():
        steps.append("later")  # is not interrupted by what is over
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_the_second_signal_waits_for_nothing():
    steps = []
    with pytest.raises(KeyboardInterrupt), interrupts.handle_signals(), interrupts.defer_signals():
        send()
        steps.append("held")
        send()
        steps.append("not reached")
    assert steps == ["held"]


def test_outside_what_is_held_a_signal_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts.handle_signals():
        send()


def test_a_signal_in_the_managing_process_keeps_all_finished_trials_of_a_stack(tmp_path):
    class Interrupts(Listener):
        def finished(self, record):
            if record.trial.seed == 0:
                send()

    spec = build({"methods": "naive", "seeds": 3, "model": "mlp:width=8", "recipe": {"iterations": 2}, "device": "cpu",
                  "execution": {"workers": 0, "stack": 3}})
    with pytest.raises(KeyboardInterrupt), interrupts.handle_signals():
        run.execute(run.prepare(spec, discover(), tmp_path), Interrupts(), command="")
    assert sorted(record.trial.seed for record in Store(tmp_path).read()[0]) == [0, 1, 2]


def test_a_thread_leaves_the_signals_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def inside():
        with interrupts.handle_signals():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_sigterm_keeps_what_is_done_and_says_how_to_go_on(tmp_path, workers):
    install_hostile(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen([sys.executable, "-m", "clbench", "run", "--methods", "naive,hang", "--seeds", "1",
                            "--iterations", "2", "--device", "cpu", "--workers", str(workers), "--threads", "1",
                            "--out", tmp_path / "run"], text=True, env=environment, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not (tmp_path / "site" / "hanging").exists() and time.monotonic() < end:
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=20)
    assert (run.returncode, out) == (130, "")
    assert "interrupted: 1 of 2 trials are done, and" in err and "Run the same command again to continue" in err
    assert "Traceback" not in err
    assert [r.label for r in Store(tmp_path / "run").read()[0]] == ["naive"]
    assert not (tmp_path / "run" / "locks").exists()
