"""Streams of tasks as tensors: data sets, Avalanche benchmarks built from them, and their cache."""

from clbench.core.files import default_data_dir

__all__ = ["default_data_dir"]
