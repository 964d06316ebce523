"""Avalanche benchmarks read into tensors; the only package that imports Avalanche."""
