"""Benchmarks for the tests, used as `tiny_benchmarks:NAME`."""

import torch


def flat():
    """Return two tasks of flat vectors (no images)."""
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(0)
    parts = [(torch.rand(40, 12, generator=generator), torch.arange(40) % 2 + 2 * task) for task in range(2)]
    return tensors_benchmark(train_tensors=parts, test_tensors=parts, task_labels=[0, 0], complete_test_set_only=False)
