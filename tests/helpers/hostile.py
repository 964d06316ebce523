"""A plugin distribution whose methods misbehave, written to a folder as if it were installed."""

import textwrap

DECLARATION = """
    from clbench import StrategyInfo, hookimpl

    @hookimpl
    def clbench_strategies():
        return [StrategyInfo(name, f"hostile_strategies:{name.title()}", "misbehaves")
                for name in ("boom", "nan", "die", "once", "hungry", "noted", "chatty", "hang", "unbuildable")]
"""
STRATEGIES = """
    import os, signal, sys, time
    from pathlib import Path
    import torch
    from clbench import Strategy

    class Boom(Strategy):
        def before_task(self, task):
            if task.index == 1:
                raise ValueError("boom on purpose")

    class Nan(Strategy):
        def loss(self, batch):
            return super().loss(batch) * float("nan")

    class Die(Strategy):
        def before_task(self, task):
            print("last words", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)

    class Once(Strategy):
        def after_task(self, task):
            # Kills the first process that comes here.
            mark = Path(__file__).with_name("died")
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)

    class Hungry(Strategy):
        def loss(self, batch):
            # The kernel's doing, where two or more train at once.
            if torch._C._functorch.is_batchedtensor(batch.x):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().loss(batch)

    class Noted(Strategy):
        def before_task(self, task):
            # Notes who runs it, once a trial, slowly enough for another to come by.
            if task.index == 0:
                with Path(__file__).with_name("noted").open("a") as file:
                    file.write(f"{os.getpid()}\\n")
                time.sleep(0.5)

    class Chatty(Strategy):
        def before_task(self, task):
            print('{"type": "ready"}', flush=True)
            os.write(1, b"straight to the file descriptor\\n")
            assert sys.stdin.read() == ""

    class Hang(Strategy):
        def before_task(self, task):
            # Hangs in the first two processes that train it.
            pids = Path(__file__).with_name("hanging")
            known = pids.read_text().split() if pids.exists() else []
            if len(known) < 2:
                pids.write_text(" ".join([*known, str(os.getpid())]))
                time.sleep(600)

    class Unbuildable(Strategy):
        def __init__(self, *args):
            raise TypeError("not to be built")
"""


def write_distribution(folder, name, entry_points, *, commands=None, **modules):
    """Write modules and metadata with entry points as pip does; `commands` maps names to `module:attribute`."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join([
        "[clbench]", *(f"{m} = {m}" for m in entry_points),
        "[clbench.commands]", *(f"{command} = {value}" for command, value in (commands or {}).items()), ""]))
    for module, code in modules.items():
        (folder / f"{module}.py").write_text(textwrap.dedent(code))


def install_hostile(folder):
    write_distribution(folder, "hostile", ["clbench_hostile"], clbench_hostile=DECLARATION,
                       hostile_strategies=STRATEGIES)
