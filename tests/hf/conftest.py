"""What tests with transformers' Trainer need."""

import pytest
import torch


@pytest.fixture(autouse=True)
def unpinned(monkeypatch):
    """Pin no memory: Trainer does it for the accelerator that other tests simulate in this process, which has none."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *args: self)
