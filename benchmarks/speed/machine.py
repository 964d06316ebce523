"""Describe the machine and the versions; runs in a separate process because it imports torch."""

from __future__ import annotations

from typing import Any

import torch

from clbench.results import provenance


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Describe the machine, the versions and the commit."""
    cuda = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    can = getattr(torch.cpu, "get_capabilities", dict)()  # only in newer versions of torch
    bf16 = " with bf16" if can.get("avx512_bf16") or can.get("amx_bf16") else ""
    return {"machine": provenance.machine(), **cuda, **provenance.versions(), "commit": provenance.git_commit(),
            "matrix library": "MKL" if torch.backends.mkl.is_available() else "other",
            "vector instructions": torch.backends.cpu.get_cpu_capability() + bf16}
