"""The benchmarks of papers that come with clbench."""

from __future__ import annotations

from clbench.core.hookspecs import BenchmarkInfo
from clbench.core.scenario import Scenario
from clbench.data.named.by_class import CUBOptions, ImageNetAOptions, ImageNetROptions, OmniBenchmarkOptions
from clbench.data.named.by_domain import CLEAR10Options, CORe50Options, DomainNetOptions
from clbench.data.named.options import named_benchmark

BY_CLASS: tuple[Scenario, ...] = ("class", "task", "domain")
DECLARED: tuple[BenchmarkInfo, ...] = (
    named_benchmark("10 x 20 classes of ImageNet-R (art, cartoons, toys); six published splits", ImageNetROptions,
                    BY_CLASS),
    named_benchmark("10 x 20 classes of ImageNet-A, hard photos", ImageNetAOptions, BY_CLASS),
    named_benchmark("10 x 20 species of birds of CUB-200-2011", CUBOptions, BY_CLASS),
    named_benchmark("10 x 30 classes of OmniBenchmark, in PILOT's folders", OmniBenchmarkOptions, BY_CLASS),
    named_benchmark("6 domains of DomainNet with 345 classes; with tasks=5: 5 x 69 classes", DomainNetOptions,
                    BY_CLASS),
    named_benchmark("50 objects of CORe50 in 8 sessions, or in 9 tasks of new objects", CORe50Options,
                    ("domain", "class")),
    named_benchmark("11 classes of CLEAR-10 in 10 buckets, by time", CLEAR10Options, BY_CLASS),
)
