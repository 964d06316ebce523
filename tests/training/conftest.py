import pytest

from clbench.training import evaluation


@pytest.fixture
def small_batches(monkeypatch):
    """Evaluate in batches of 7 images [1, 8, 8]."""
    monkeypatch.setattr(evaluation, "BATCH_BYTES", {"cpu": 7 * 4 * 64})
    monkeypatch.setattr(evaluation, "SMALLEST", 1)
