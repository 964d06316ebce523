import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from helpers.hostile import install_hostile
from helpers.records import make_record

from clbench.core import files
from clbench.core.files import NoLocks, lock
from clbench.execution.claims import TrialClaims
from clbench.experiment.trial import PlannedTrial
from clbench.results.store import Store

HOLD = "import sys, time\nfrom pathlib import Path\nfrom clbench.core.files import lock\n" \
       "held = lock(Path(sys.argv[1]))\n" \
       "print(held is not None, flush=True)\ntime.sleep(60)"


def test_a_lock_dies_with_its_owner(tmp_path):
    path = tmp_path / "locks" / "a.lock"
    owner = subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "True\n"
    assert lock(path) is None
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    held = lock(path)
    assert held is not None and lock(path) is None
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_held_once_whoever_comes_and_goes(tmp_path):
    path, holders, most = tmp_path / "locks" / "a.lock", [], []

    def come_and_go():
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            if held := lock(path):
                holders.append(1)
                most.append(len(holders))
                time.sleep(0.001)
                holders.pop()
                held.release()

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) > 10 and set(most) == {1}


class Folder:
    def __init__(self, directory):
        self.store, self.records, self.notes = Store(directory), [], []
        self.claims = TrialClaims(self.store, {}, self.records.append, self.notes.append)


def planned(record):
    return PlannedTrial(record.trial, record.label, False)


def test_a_trial_taken_elsewhere_is_waited_for_and_its_record_found(tmp_path):
    one, two = Folder(tmp_path), Folder(tmp_path)
    record = make_record()
    assert one.claims.take(planned(record)) and one.claims.take(planned(record))
    assert not two.claims.take(planned(record))
    one.store.write(record)
    threading.Timer(0.2, one.claims.release, [record.key]).start()
    assert two.claims.wait() == []
    assert two.records == [record]
    assert "1 of the trials are being run by another clbench" in two.notes[0]


def test_a_trial_whose_owner_left_it_undone_is_run_here(tmp_path):
    one, two = Folder(tmp_path), Folder(tmp_path)
    record = make_record()
    assert one.claims.take(planned(record)) and not two.claims.take(planned(record))
    one.claims.close()
    assert two.claims.wait() == [planned(record)]
    assert not one.claims.take(planned(record))


def test_without_file_locks_that_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with pytest.raises(NoLocks):
        lock(tmp_path / "a.lock")
    folder = Folder(tmp_path)
    assert all(folder.claims.take(planned(make_record(seed=s))) for s in range(2))
    assert folder.notes == [f"there are no file locks for {tmp_path}: let one clbench run there at a time"]


@pytest.mark.slow
def test_two_processes_share_a_folder_and_run_no_trial_twice(tmp_path):
    install_hostile(tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-m", "clbench", "run", "--methods", "noted", "--seeds", "4", "--device",
                              "cpu", "--iterations", "2", "--workers", "1", "--threads", "1", "--out",
                              tmp_path / "run"], text=True, env=environment, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
            for _ in range(2)]
    ends = [process.communicate(timeout=100) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert len(Store(tmp_path / "run").read()[0]) == 4
    runs = (tmp_path / "site" / "noted").read_text().split()
    assert len(runs) == 4
    assert all("noted" in out for out, _ in ends)
    assert not (tmp_path / "run" / "locks").exists()
