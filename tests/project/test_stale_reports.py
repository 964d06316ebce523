"""`make stale` lists committed records of other code than is installed; none fails (docs/decisions/project.md)."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT
from helpers.records import folder, make_record

from clbench.core.registry import discover
from clbench.results.provenance import code_of
from clbench.results.records import Code

SCRIPT = ROOT / "benchmarks" / "stale_reports.py"


@pytest.mark.slow
def test_committed_records_are_looked_at_without_torch():
    command = (f"import sys, runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__'); "
               "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    every = len([*(ROOT / "reports").rglob("records/*.json")])
    assert f" of {every} records are stale; " in done.stdout.splitlines()[-1]


def test_what_other_code_gave_is_listed(tmp_path):
    def made(seed, code):
        record = make_record("ewc", seed)
        return record.model_copy(update={"provenance": record.provenance.model_copy(update={"code": code})})

    now = code_of(made(0, {}).trial, discover())
    other = {"method": Code(packages=["clbench_ewc"], hash="0" * 16, release="ours 0.0.9")}
    folder(tmp_path / "study", made(0, now), made(1, other), made(2, other), made(3, {}))
    script = f"import runpy, pathlib; runpy.run_path({str(SCRIPT)!r})['main'](pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["study: ewc, seeds 1, 2: the method's code (clbench_ewc, ours 0.0.9 -> "
                                        f"{discover().origins['method', 'ewc']})",
                                        "2 of 4 records are stale; 1 do not tell their code"], json.dumps(done.stderr)
