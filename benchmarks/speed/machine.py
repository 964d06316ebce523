"""What the measurements were made on and with; runs in a process of its own, since it imports torch."""

from __future__ import annotations

from typing import Any

import torch

from clbench import provenance


def answer(request: dict[str, Any], started: float) -> dict[str, Any]:
    """Describe the machine, the versions and the commit."""
    cuda = {"accelerator": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"machine": provenance.machine(), **cuda, **provenance.versions(), "commit": provenance.git_commit(),
            "matrix library": "MKL" if torch.backends.mkl.is_available() else "other"}
