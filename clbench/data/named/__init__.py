"""Photo benchmarks that papers use: their options, the files that they read, and their splits.

To add a benchmark, subclass `NamedOptions` and pass the class to `named_benchmark`. Nothing here imports torch until
photos are read.
"""
