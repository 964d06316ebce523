"""A sweep on a real Ray cluster of three nodes, of which one is killed."""

import os
import re
import signal
import socket
import sys
import textwrap
import time
from pathlib import Path

import pytest
from helpers.hostile import install_hostile, write_distribution

from clbench.core.errors import ClbenchError, SpecError
from clbench.core.registry import discover
from clbench.execution import interrupts, run
from clbench.execution.workers.plan import Listener
from clbench.execution.workers.ray_cluster import ClusterError, gpus_of
from clbench.experiment.overrides import merge
from clbench.experiment.spec import build

pytestmark = [pytest.mark.extra("ray"),
              pytest.mark.skipif(sys.platform != "linux", reason="Ray's clusters are Linux machines")]
NODE = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20}
# Ray finds a lost node after 6 seconds. With 2 seconds, it took the head node of a busy machine for lost and ended
# this process.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 12}

DECLARATION = """
    from clbench import StrategyInfo, hookimpl

    @hookimpl
    def clbench_strategies():
        return [StrategyInfo(f"wait-{name}", "waiting_strategies:Wait", "waits for a node's end") for name in "abc"]
"""
STRATEGIES = """
    import time
    from pathlib import Path
    from clbench import Strategy

    class Wait(Strategy):
        def before_task(self, task):
            end = time.monotonic() + 60
            while not Path(__file__).with_name("lost").exists() and time.monotonic() < end:
                time.sleep(0.05)
"""
SHIPPED = """
    from clbench import Strategy, StrategyInfo, hookimpl

    class Shipped(Strategy):
        pass

    @hookimpl
    def clbench_strategies():
        return [StrategyInfo("shipped", Shipped, "comes as a file")]
"""


class Log(Listener):
    def __init__(self):
        self.running, self.lines = 0, []

    def ready(self, device, workers, threads, nodes=0, again=False):
        self.lines.append(f"{workers} workers x {threads} on {device}, {nodes} nodes")

    def note(self, text):
        if "optimizer steps a task" not in text:
            self.lines.append(text)

    def started(self, planned):
        self.running += 1

    def finished(self, record):
        self.running -= 1


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    install_hostile(folder)
    write_distribution(folder, "waiting", ["clbench_waiting"], clbench_waiting=DECLARATION,
                       waiting_strategies=STRATEGIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        # Another file's tests may have imported the module from their own folder, without the mark of `once`, which
        # then kills this process.
        patch.delitem(sys.modules, "hostile_strategies", raising=False)
        for name, value in {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
                            "RAY_worker_niceness": "0"}.items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="module")
def cluster(site):
    from ray.cluster_utils import Cluster

    with interrupts.preserve_handlers():
        found = Cluster(initialize_head=True, head_node_args={
            **NODE, "include_dashboard": False, "_system_config": SOON})
        found.others = [found.add_node(**NODE) for _ in range(2)]
    yield found
    found.shutdown()


def until(done):
    end = time.monotonic() + 30
    while not done() and time.monotonic() < end:
        time.sleep(0.05)
    return done()


def execute(out, methods, listener, files=(), **how):
    spec = build(merge({"seeds": 1, "device": "cpu"}, {"methods": methods, "iterations": 2, "threads": 1, **how}))
    return run.execute(run.prepare(spec, discover(files=files), out), listener, command="")


def test_a_sweep_survives_a_node_and_its_records_are_those_of_one_machine(cluster, site, tmp_path):
    shipped = tmp_path / "shipped_plugin.py"
    shipped.write_text(textwrap.dedent(SHIPPED))

    class Strike(Log):
        def started(self, planned):
            super().started(planned)
            if self.running == 3 and len(cluster.others) == 2:  # each node trains a trial that waits
                cluster.remove_node(cluster.others.pop(), allow_graceful=False)

        def note(self, text):
            super().note(text)
            if "lost" in text:
                (site / "lost").touch()

    methods, log = "wait-a,wait-b,wait-c,once,shipped,lora:rank=2", Strike()
    records = execute(tmp_path / "ray", methods, log, [shipped], executor="ray", address=cluster.address)
    name = socket.gethostname()
    assert log.lines[0] == "3 workers x 1 on cpu, 3 nodes"
    assert sorted(re.sub("wait-.", "wait", re.sub("Actor[A-Za-z]+Error", "*", line)) for line in log.lines[1:]) == [
        f"once seed 0: the worker process on node {name} was killed by SIGKILL (probably out of memory; fewer "
        "--workers need less). clbench tries again",
        f"wait seed 0: Ray lost the worker on node {name} (*). clbench tries again"]
    assert len(list((tmp_path / "ray" / "artifacts").glob("*/task*"))) == 5, "lora's, of five tasks"
    assert sorted(p.name for p in (tmp_path / "ray").iterdir()) == ["artifacts", "looks.jsonl", "records"]
    alone = execute(tmp_path / "local", methods, Listener(), [shipped], workers=0)
    assert [r.facts() for r in records] == [r.facts() for r in alone]
    assert {r.status for r in records} == {"done"}


def test_sigterm_keeps_what_is_done_and_leaves_no_worker(cluster, site, tmp_path):
    class Stop(Listener):
        def finished(self, record):  # of naive: the other worker has been given the one that hangs
            until((site / "hanging").exists)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), interrupts.handle_signals():
        execute(tmp_path, "hang,naive", Stop(), executor="ray", address=cluster.address)
    assert len(list((tmp_path / "records").iterdir())) == 1
    assert not (tmp_path / "locks").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    process, = (site / "hanging").read_text().split()
    assert until(lambda: not Path("/proc", process).exists())


@pytest.mark.parametrize(("how", "words"), [
    ({"threads": 64}, r"no node .* has the 64 CPUs \(--threads\) that a worker takes, only 1 CPUs, 0 GPUs; "),
    ({"gpus": 0.5}, r"--gpus 0.5 with --device cpu: leave one of them out"),
    ({"address": "nowhere"}, "'nowhere' is no address of a Ray cluster: HOST:PORT"),
    ({"address": "127.0.0.1:1"}, r"no Ray cluster answers at 127.0.0.1:1 \(.*refused\): start one with ray start"),
    ({"workers": 0}, "--workers 0 runs trials in this process and --executor ray on a cluster"),
    ({"executor": "local"}, "add --executor ray")])
def test_what_cannot_be_is_said_and_leaves_nothing(cluster, tmp_path, how, words):
    with pytest.raises(ClbenchError, match=words):
        execute(tmp_path / "run", "naive", Listener(), **{"executor": "ray", "address": cluster.address, **how})
    assert not (tmp_path / "run").exists()


def test_without_ray_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'clbench\[ray\]'"):
        execute(tmp_path / "run", "naive", Listener(), executor="ray")


@pytest.mark.parametrize(("device", "asked", "there", "found"), [
    ("auto", None, True, (1, "cuda")), ("auto", None, False, (0, "cpu")), ("cpu", None, True, (0, "cpu")),
    ("cuda", None, False, (1, "cuda")), ("auto", 0.25, True, (0.25, "cuda")), ("auto", 0, True, (0, "cpu")),
    ("mps", None, False, (0, "mps")), ("cuda", 2, True, (2, "cuda")),
    ("cuda:1", None, True, "Ray chooses"), ("auto", 1.5, True, "a fraction of one, or whole ones"),
    ("cuda", 0, True, "leave one of them out")])
def test_gpus_follow_the_device(device, asked, there, found):
    if isinstance(found, str):
        with pytest.raises(SpecError, match=found):
            gpus_of(device, asked, there)
    else:
        assert gpus_of(device, asked, there) == found
