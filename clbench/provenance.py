"""Where a record comes from: versions, commit, machine; and the peak memory of a trial."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from clbench.records import Provenance


def collect(plugin: str, device: torch.device, command: str) -> Provenance:
    """Describe the present process, for a trial that starts now on `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Provenance(versions=versions(), plugin=plugin, git=git_commit(), device=name, machine=machine(),
                      threads=torch.get_num_threads(), started=datetime.datetime.now(datetime.timezone.utc),
                      command=command)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("clbench", "torch", "torchvision", "avalanche-lib", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # running from a source tree that is not installed
            found[package] = "unknown"
    return found


@functools.cache
def git_commit() -> str | None:
    """Return the commit of the checkout that clbench runs from, `+dirty` behind it if changed; None outside one."""
    home = Path(__file__).resolve().parent
    try:
        run = functools.partial(subprocess.run, cwd=home, capture_output=True, text=True, timeout=10)
        top = run(["git", "rev-parse", "HEAD", "--show-toplevel"])
        if top.returncode or Path(top.stdout.split()[1]) != home.parent:
            return None
        dirty = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return top.stdout.split()[0] + ("+dirty" if dirty else "")


@functools.cache
def machine() -> str:
    """Return the processor, its usable cores and the system, in words."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines()
                  if line.startswith("model name")]
        processor = models[0] if models else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor}, {cores} cores, {platform.system()}"


class PeakMemory:
    """The peak memory since it was made: of the process, and of torch on an accelerator."""

    def __init__(self, device: torch.device) -> None:
        """Start anew, where the system lets a process do so (Linux, CUDA)."""
        self.device = device
        self.reset = True
        if sys.platform == "linux":
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self.reset = False
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def host(self) -> int | None:
        """Return the peak resident bytes of the process; None where the system cannot tell it for this trial alone."""
        if sys.platform != "linux" or not self.reset:
            return None
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None

    def accelerator(self) -> int | None:
        """Return the peak bytes that torch allocated on the accelerator; None on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None
