"""Choose a device by its name, copy tensors to it, and wait for its queued work."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clbench.core.errors import SpecError


def pick_device(name: str) -> torch.device:
    """Return the device of that name; `auto` means CUDA if available, or else the CPU.

    MPS is used only if it is named: clbench has not been tested on it, and methods that need float64 cannot run on it.

    Raises:
        SpecError: this machine or this build of torch has no such device.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if cuda else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        raise SpecError(f"device {name!r} is not available: torch sees {torch.cuda.device_count()} CUDA devices. Use "
                        "--device auto or cpu")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise SpecError("device 'mps' is not available on this machine: use --device auto or cpu")
    return device


def room_for_samples(device: torch.device) -> int | None:
    """Return how many bytes of a device's memory a stream's samples may use; None for the host.

    This is half of the free memory. The other half is left for training. Memory that torch keeps from earlier trials
    without using it counts as free.
    """
    if device.type != "cuda":
        return None
    kept_unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return (torch.cuda.mem_get_info(device)[0] + kept_unused) // 2


def host_memory_left() -> int | None:
    """Return how many bytes of the host's memory a new process may use; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to a device without waiting for the queued work of the device.

    A copy to CUDA waits for the device unless its source is pinned and `non_blocking` is set.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has finished its queued work, so that a time measured afterwards includes it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means out of memory: on the device, in Python, or in torch's CPU allocator."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))
