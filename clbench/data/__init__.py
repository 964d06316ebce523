"""Streams of tasks as tensors: data sets, Avalanche benchmarks built from them, and their cache."""
