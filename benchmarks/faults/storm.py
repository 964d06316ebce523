"""Kill processes of `clbench run` at random, and check that the records equal an uninterrupted run's except in timings.

    python benchmarks/faults/storm.py --kills 100 --out runs/storm

The script runs the command repeatedly on a folder, and kills its main process or one of its workers at random moments.
When all trials are done, it starts a new folder, until the number of kills is reached. The last folder then finishes
without kills. The records of every folder are compared with those of an uninterrupted run. Linux only (uses /proc).
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from clbench.results import provenance
from clbench.results.store import Store

DECLARATION = """
    from clbench import StrategyInfo, hookimpl
    from clbench_er import EROptions

    @hookimpl
    def clbench_strategies():
        return [StrategyInfo("slow-er", "storm_strategies:SlowER", "er with pauses and checkpoints", EROptions)]
"""
STRATEGIES = """
    import time
    from clbench.persistence import callbacks
    from clbench_er.strategy import ER

    callbacks.SECONDS = 0.0

    class SlowER(ER):
        def before_task(self, task):
            time.sleep(PAUSE)
            super().before_task(task)
"""


@dataclass
class Storm:
    """The settings of the test, and the kills and starts so far."""

    out: Path
    seeds: int
    deadline: float
    longest: float  # upper limit of the seconds before a kill
    draw: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Start the command."""
        self.starts += 1
        environment = {**os.environ, "PYTHONPATH": str(self.out / "site"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-m", "clbench", "run", "--methods", "naive,slow-er", "--seeds",
                                 str(self.seeds), "--iterations", "5", "--workers", "2", "--threads", "1", "--device",
                                 "cpu", "--out", folder], env=environment, stdout=subprocess.DEVNULL,
                                stderr=subprocess.DEVNULL)

    def strike(self, process: subprocess.Popen[bytes]) -> bool:
        """Kill the main process or one of its workers after a random time; return False if it ended before."""
        try:
            process.wait(self.draw.uniform(0.2, self.longest))
            return False
        except subprocess.TimeoutExpired:
            pass
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        victim = self.draw.choice(["main", *["worker"] * len(children)])
        os.kill(process.pid if victim == "main" else int(self.draw.choice(children)), signal.SIGKILL)
        self.kills[victim] += 1
        return True

    def weather(self, folder: Path, kills: int) -> None:
        """Run the command on a folder until all trials are done; kill processes while kills and time are left.

        Raises:
            AssertionError: the command did not succeed after many starts.
        """
        for _ in range(2 * kills + 10):  # a trial that was killed too often fails, and the next start repeats it
            process = self.start(folder)
            while sum(self.kills.values()) < kills and time.monotonic() < self.deadline and self.strike(process):
                pass
            if process.wait() == 0:
                return
        raise AssertionError(f"{folder} is never done")


def facts(folder: Path) -> dict[str, dict[str, object]]:
    """Return the records of a folder by key, without timings.

    Raises:
        AssertionError: a file is not a valid record.
    """
    records, problems = Store(folder).read()
    assert not problems, problems
    return {record.key: record.facts() for record in records}


def lay(site: Path, pause: float) -> None:
    """Write the plugin to a folder as pip would install it."""
    info = site / "storm-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: storm\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[clbench]\nclbench_storm = clbench_storm\n")
    (site / "clbench_storm.py").write_text(textwrap.dedent(DECLARATION))
    (site / "storm_strategies.py").write_text(textwrap.dedent(STRATEGIES).replace("PAUSE", str(pause)))


def main() -> int:
    """Run the test; return 1 if a record differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1800.0, help="no kills after so many")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--pause", type=float, default=0.5, help="seconds before each task of a slow trial")
    parser.add_argument("--longest", type=float, default=12.0, help="seconds between kills, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    lay(args.out / "site", args.pause)
    began = time.monotonic()
    storm = Storm(args.out, args.seeds, 0.0, args.longest, random.Random(args.seed))
    assert storm.start(args.out / "calm").wait() == 0
    storm.deadline = time.monotonic() + args.seconds
    calm, rounds, differing = facts(args.out / "calm"), 0, 0
    while sum(storm.kills.values()) < args.kills and time.monotonic() < storm.deadline:
        folder = args.out / f"storm{rounds}"
        storm.weather(folder, args.kills)
        found = facts(folder)
        differing += sum(found.get(key) != value for key, value in calm.items()) + len(found.keys() - calm.keys())
        assert not (folder / "locks").exists() and not (folder / "checkpoints").exists()
        rounds += 1
    print(json.dumps({"command": shlex.join(["python", *sys.argv]), "commit": provenance.git_commit(),
                      "machine": provenance.machine(), "versions": provenance.versions(),
                      "date": datetime.date.today().isoformat(),
                      "kills of the main process": storm.kills["main"], "kills of a worker": storm.kills["worker"],
                      "starts of the command": storm.starts, "folders": rounds, "records compared": rounds * len(calm),
                      "records that differ": differing, "seconds": round(time.monotonic() - began)}, indent=1))
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
