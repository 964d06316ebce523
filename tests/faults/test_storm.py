import json
import subprocess
import sys

import pytest
from helpers import ROOT

STORM = ROOT / "benchmarks" / "faults" / "storm.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_small_storm_loses_nothing(tmp_path):
    done = subprocess.run([sys.executable, STORM, "--kills", "3", "--seconds", "20", "--seeds", "1", "--pause", "0.2",
                           "--longest", "4", "--out", tmp_path], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["command"].endswith(f"--out {tmp_path}")
    assert {"commit", "machine", "versions", "date"} <= figures.keys()
    assert figures["kills of the main process"] + figures["kills of a worker"] >= 1
    assert figures["records compared"] >= 2 and figures["records that differ"] == 0
