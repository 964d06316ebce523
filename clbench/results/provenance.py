"""Where a record comes from: versions, commit, machine; and the peak memory of a trial."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from clbench.core.files import PACKAGE
from clbench.results.records import Code, Provenance

if TYPE_CHECKING:
    import torch


def collect(plugin: str, device: torch.device, command: str, code: Mapping[str, Code] | None = None) -> Provenance:
    """Describe the present process, for a trial of that code that starts now on `device`."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Provenance(versions=versions(), plugin=plugin, git=git_commit(), device=name, machine=machine(),
                      threads=torch.get_num_threads(), started=datetime.datetime.now(datetime.timezone.utc),
                      command=command, code=dict(code or {}))


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    by_package = {"python": platform.python_version()}
    for package in ("clbench", "torch", "torchvision", "avalanche-lib", "numpy"):
        try:
            by_package[package] = version(package)
        except PackageNotFoundError:  # running from a source tree that is not installed
            by_package[package] = "unknown"
    return by_package


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the checkout that clbench runs from, or None outside a checkout.

    `+dirty` is appended if code of clbench or of a plugin in the checkout has changed since that commit. Other files,
    such as a report that a run has rewritten, do not count.
    """
    try:
        run = functools.partial(subprocess.run, cwd=PACKAGE, capture_output=True, text=True, timeout=10)
        top = run(["git", "rev-parse", "HEAD", "--show-toplevel"])
        if top.returncode or Path(top.stdout.split()[1]) != PACKAGE.parent:
            return None
        dirty = run(["git", "status", "--porcelain", "--untracked-files=no", "--", ".", "../plugins"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return top.stdout.split()[0] + ("+dirty" if dirty else "")


@functools.cache
def machine() -> str:
    """Return the processor, its usable cores, the system and preloaded libraries, in words.

    A library in LD_PRELOAD (a memory allocator, OpenMP, what chooses MKL's code) can change every time by a factor, so
    runs with it and without are two machines.
    """
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                  if line.startswith("model name")]
        processor = models[0] if models else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    preloaded = ", ".join(Path(library).name for library in os.environ.get("LD_PRELOAD", "").replace(":", " ").split())
    return f"{processor}, {cores} cores, {platform.system()}" + (f", {preloaded} preloaded" if preloaded else "")
