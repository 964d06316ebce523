"""The wheel, built of a copy without .git and installed in an environment of its own, does the main job anywhere."""

import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
from helpers import ROOT

from clbench.results.store import Store

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "reports", "docs", "tests", "runs", "build", "dist")
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return the folder of the commands of an environment that has the wheel; all else comes from this environment."""
    home = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, home / "copy", ignore=NOT_COPIED)
    run(*PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", home, home / "copy")
    shutil.rmtree(home / "copy")
    run(sys.executable, "-m", "venv", "--without-pip", home / "env")
    commands = home / "env" / ("Scripts" if os.name == "nt" else "bin")
    wheel, = home.glob("clbench-*.whl")
    run(*PIP, "--python", commands / "python", "install", "--quiet", "--no-deps", "--no-index", wheel)
    site = run(commands / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    with open(os.path.join(site, "libraries.pth"), "w", encoding="utf-8") as file:  # behind what is installed there
        file.write("\n".join(dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])) + "\n")
    return commands


@pytest.mark.slow
@pytest.mark.extra("test")
def test_the_wheel_does_the_main_job_outside_of_a_checkout(installed, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    options = {"cwd": tmp_path, "env": {**environment, "CLBENCH_DATA": str(tmp_path / "data")}}
    code = "import clbench, clbench_lora; print(clbench.__file__, clbench_lora.__file__)"
    found = run(installed / "python", "-c", code, **options)
    assert all(path.startswith(str(installed.parent)) for path in found.split())
    table = run(installed / "clbench", "run", "--methods", "lora,ewc", "--seeds", "1", **options)
    assert "split-mnist-5k" in table and "lora" in table and "ewc" in table
    (folder,) = (tmp_path / "runs").iterdir()
    records, problems = Store(folder).read()
    assert not problems and sorted(r.label for r in records) == ["ewc", "lora"]
    assert all(r.status == "done" and r.provenance.git is None and r.R[-1][-1] > 0.9 for r in records)
    assert {"report.md", "report.html"} <= {path.name for path in folder.iterdir()}
    assert "van-de-ven-split-mnist" in run(installed / "clbench", "verify", **options)
    assert "--wheels" in run(installed / "clbench", "weights", "fetch", "--help", **options)
