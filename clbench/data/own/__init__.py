"""Benchmarks made of one's own data: formats read, samples divided into tasks, an Avalanche benchmark of them."""
