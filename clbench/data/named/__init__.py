"""Benchmarks of photos that papers use, by name: options, which files they read, and how these are split.

A benchmark is a subclass of `NamedOptions` and its `BenchmarkInfo` by `named_benchmark`. Nothing here imports torch
until photos are read.
"""
