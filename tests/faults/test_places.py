"""A run folder that goes away while trials run, and a clock that jumps."""

import os
import re
import subprocess
import sys
import time

import pytest
from helpers.hostile import install_hostile

from clbench import cli
from clbench.results.store import Store

JUMPING = """
import datetime, itertools, time

days, now, real = itertools.cycle([0, -3, 2]), time.time, datetime.datetime
time.time = lambda: now() + 86_400 * next(days)

class Jumping(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(days=next(days))

datetime.datetime = Jumping
"""


def arguments(out, methods):
    return ["run", "--methods", methods, "--seeds", "3", "--iterations", "1", "--device", "cpu", "--workers", "1",
            "--threads", "1", "--out", str(out)]


@pytest.fixture
def start(tmp_path):
    """Return a function that starts the command with modules of ours on its path."""
    install_hostile(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}

    def started(out, methods):
        return subprocess.Popen([sys.executable, "-m", "clbench", *arguments(out, methods)], text=True, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    return started


def finished(store):
    """Whether there is a record, whose trial is not locked any more."""
    return any(not (store.locks / f"{record.key}.lock").exists() for record in store.read()[0])


@pytest.mark.slow
def test_a_run_folder_that_is_lost_ends_the_run_in_a_line_and_the_same_command_goes_on(tmp_path, start, monkeypatch):
    out, away = tmp_path / "share" / "run", tmp_path / "away"
    run, end = start(out, "noted"), time.monotonic() + 100
    while not finished(Store(out)) and time.monotonic() < end:
        time.sleep(0.02)
    out.parent.rename(away)
    out.parent.touch()  # as a mount point that nothing is mounted on any more: nothing can be made below it
    said, told = run.communicate(timeout=100)
    errors = [line for line in told.splitlines() if line.startswith("Error: ")]
    assert (run.returncode, said, len(errors)) == (2, "", 1), told
    assert str(out) in errors[0] and "Not a directory" in errors[0] and "Traceback" not in told
    out.parent.unlink()
    away.rename(out.parent)
    kept, _ = Store(out).read()
    assert 1 <= len(kept) < 3
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    code = cli.call(arguments(out, "noted"))
    records, problems = Store(out).read()
    assert (code, len(records), problems) == (0, 3, [])
    assert all(record in records for record in kept) and not (out / "locks").exists()


@pytest.mark.slow
def test_a_clock_that_jumps_changes_no_time_that_is_measured(tmp_path, start):
    (tmp_path / "site" / "sitecustomize.py").write_text(JUMPING)
    run = start(tmp_path / "run", "naive,er")
    _, told = run.communicate(timeout=100)
    records, problems = Store(tmp_path / "run").read()
    assert (run.returncode, len(records), problems) == (0, 6, [])
    days = [r.provenance.started.date() for r in records]
    assert max(days) > min(days), "the clock did jump"
    assert all(0 <= t < 60 for r in records for of in (r.timings.train, r.timings.evaluate) for t in of)
    elapsed = re.findall(r"(\d+):(\d\d) elapsed, about (\d+):(\d\d) left", told)
    assert len(elapsed) == 5 and all(int(minutes) == 0 for found in elapsed for minutes in (found[0], found[2])), told
