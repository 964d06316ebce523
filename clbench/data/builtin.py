"""The built-in benchmarks and their options, declared without importing torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from clbench.core.data_sets import DataSet, Needed
from clbench.core.hookspecs import BenchmarkInfo, hookimpl
from clbench.core.objective import CAUSAL_LM
from clbench.core.options import Options
from clbench.core.scenario import Scenario
from clbench.data import own_options as own
from clbench.data.common_options import ClassOptions, CropOptions, PerClassOptions
from clbench.data.named.by_class import CUBOptions, ImageNetAOptions, ImageNetROptions, OmniBenchmarkOptions
from clbench.data.named.by_domain import CLEAR10Options, CORe50Options, DomainNetOptions
from clbench.data.named.options import named_benchmark

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
MNIST, FASHION_MNIST = (tuple(f"{name}/raw/{file}" for file in MNIST_FILES) for name in ("MNIST", "FashionMNIST"))
NEWSGROUPS = ("text/20newsgroups-train.csv", "text/20newsgroups-test.csv")
CIFAR10, CIFAR100 = ("cifar10.safetensors",), ("cifar100.safetensors",)


def _files(title: str, files: Sequence[str], source: str, automatic: bool = True) -> DataSet:
    """Return a data set in a few files of the data folder."""
    return DataSet(title, needed=tuple(Needed(file, "a file of " + title, source) for file in files),
                   automatic=automatic)


DOWNLOADED = "clbench downloads it when a run needs it, by torchvision"
DATA = {
    MNIST: _files("MNIST", MNIST, DOWNLOADED), FASHION_MNIST: _files("Fashion-MNIST", FASHION_MNIST, DOWNLOADED),
    CIFAR10: _files("CIFAR-10", CIFAR10, DOWNLOADED), CIFAR100: _files("CIFAR-100", CIFAR100, DOWNLOADED),
    NEWSGROUPS: _files("20 Newsgroups", NEWSGROUPS, "benchmarks/texts/fetch.py of clbench writes it", automatic=False),
}
BY_CLASS: tuple[Scenario, ...] = ("class", "task", "domain")
NAMED: tuple[BenchmarkInfo, ...] = (  # photo benchmarks that papers use
    named_benchmark("10 tasks of 20 classes of ImageNet-R (art, cartoons); six published splits", ImageNetROptions,
                    BY_CLASS),
    named_benchmark("10 tasks of 20 classes of ImageNet-A (hard photos)", ImageNetAOptions, BY_CLASS),
    named_benchmark("10 tasks of 20 bird species of CUB-200-2011", CUBOptions, BY_CLASS),
    named_benchmark("10 tasks of 30 classes of OmniBenchmark, in PILOT's folders", OmniBenchmarkOptions, BY_CLASS),
    named_benchmark("6 domains of DomainNet (345 classes); tasks=5: 5 tasks of 69 classes", DomainNetOptions,
                    BY_CLASS),
    named_benchmark("50 objects of CORe50 in 8 sessions, or in 9 tasks of new objects", CORe50Options,
                    ("domain", "class")),
    named_benchmark("11 classes of CLEAR-10 in 10 periods of time (buckets)", CLEAR10Options, BY_CLASS),
)


class ImageOptions(Options):
    """Options of every image benchmark."""

    normalize: bool | Literal["model"] = Field(
        False, description="how inputs are normalized. true: with the data set's mean and standard deviation; false: "
        "only scaled to [0, 1], as van de Ven & Tolias do; model: with the normalization of the pretrained weights, "
        "the default if known")


class SplitOptions(ClassOptions, ImageOptions):
    """Options of the benchmarks that split MNIST and Fashion-MNIST."""

    LATER: ClassVar[tuple[str, ...]] = ("padding", "mean", "deviation")

    padding: int = Field(
        0, ge=0, le=8, description="zero pixels added on each side (2 gives 32 x 32, as in Hsu et al.)")
    mean: float | None = Field(None, ge=0, le=1, description="mean to subtract from inputs in [0, 1], instead of the "
                               "data set's (normalize); requires deviation")
    deviation: float | None = Field(None, gt=0, description="standard deviation by which inputs are then divided (Hsu "
                                    "et al.: mean 0.1, deviation 0.2752)")

    @model_validator(mode="after")
    def _check_normalization(self) -> SplitOptions:
        """Refuse a mean without a deviation, and two ways to normalize."""
        if (self.mean is None) != (self.deviation is None):
            raise ValueError("mean and deviation go together; give both or neither")
        if self.mean is not None and self.normalize:
            raise ValueError("give mean and deviation, or normalize, not both")
        return self


class CIFARInputs(CropOptions, ClassOptions):
    """Options for turning CIFAR images into inputs."""

    normalize: Literal["dataset", "imagenet", "none", "model"] = Field(
        "dataset", description="mean and standard deviation by which inputs are normalized. dataset: of CIFAR itself; "
        "imagenet: of ImageNet; none: inputs are only scaled to [0, 1]; model: of the pretrained weights, the default "
        "if known")
    augment: Literal["crop-flip", "random-resized-crop", "none"] = Field(
        "crop-flip", description="how training images are augmented each time they are used. crop-flip: random crop "
        "with 4 pixels of padding, and random flip; random-resized-crop: a random part, resized, and random flip; "
        "none: unchanged")

    @field_validator("augment", mode="before")
    @classmethod
    def _accept_booleans(cls, value: Any) -> Any:
        """Accept true and false, which were the only values of earlier versions."""
        return {True: "crop-flip", False: "none"}[value] if isinstance(value, bool) else value

    @field_serializer("augment")
    def _as_truth(self, value: str) -> bool | str:
        """Write crop-flip as true and none as false, as earlier versions did, so that trials keep their keys."""
        return {"crop-flip": True, "none": False}.get(value, value)


class CIFAROptions(PerClassOptions, CIFARInputs):
    """Options of `split-cifar10`."""

    smallest_class: ClassVar[tuple[int, int]] = (5000, 1000)


class CIFAR100Options(CIFAROptions):
    """Options of `split-cifar100`."""

    classes: ClassVar[int] = 100
    smallest_class: ClassVar[tuple[int, int]] = (500, 100)

    tasks: int = Field(10, ge=1, description="number of tasks; must divide the number of classes")
    held_out: int = Field(0, ge=0, le=99, description="number of classes to leave out, the last in natural order; "
                          "clbench pretrain trains a backbone on them")
    part: Literal["stream", "held-out"] = Field("stream", description="classes of the tasks. stream: all except the "
                                                "held-out classes; held-out: only the held-out classes")

    @property
    def used(self) -> int:
        """Return how many classes the stream has."""
        return self.held_out if self.part == "held-out" else self.classes - self.held_out

    @model_validator(mode="after")
    def _check_classes(self) -> CIFAR100Options:
        """Refuse a stream without classes."""
        if not self.used:
            raise ValueError("part = held-out needs held_out = number of classes")
        return self


class B50Options(CIFAROptions):
    """Options of `split-cifar100-b50`."""

    classes: ClassVar[int] = 100
    smallest_class: ClassVar[tuple[int, int]] = (500, 100)

    tasks: int = Field(5, ge=1, description="number of tasks after the first one; must divide the other 50 classes")

    @property
    def used(self) -> int:
        """Return how many classes come after the first task."""
        return self.classes // 2

    @property
    def ordered(self) -> int:
        """Return the number of classes in the class order."""
        return self.classes

    @property
    def sizes(self) -> list[int]:
        """Return the number of classes of each task."""
        return [self.classes - self.used, *super().sizes]

    @field_validator("task_sizes")
    @classmethod
    def _refuse_task_sizes(cls, value: list[int]) -> list[int]:
        """Refuse sizes of tasks, because the first task has 50 classes."""
        if value:
            raise ValueError("the first task always has 50 classes; use split-cifar100:task_sizes=50+20+30 for others")
        return value


class PermutedOptions(ImageOptions):
    """Options of `permuted-mnist`."""

    tasks: int = Field(10, ge=1, description="number of tasks; the first one leaves the images unchanged")
    padding: int = Field(
        0, ge=0, le=8, description="zero pixels added on each side before the permutation (2 gives 32 x 32)")


class RotatedOptions(ImageOptions):
    """Options of `rotated-mnist`."""

    tasks: int = Field(5, ge=1, le=36, description="number of tasks; their angles are evenly spaced from 0 to "
                       "`degrees`, which is excluded")
    degrees: float = Field(
        180.0, gt=0, le=360, description="upper end of the angles, in degrees, which no task reaches")


class NewsgroupsOptions(PerClassOptions, own.TokenOptions, ClassOptions):
    """Options of `split-newsgroups`."""

    classes: ClassVar[int] = 20
    smallest_class: ClassVar[tuple[int, int]] = (377, 251)

    tasks: int = Field(10, ge=1, description="number of tasks; must divide the number of classes")


class CustomOptions(Options):
    """Options of `package.module:function` and `path/to/file.py:function`."""

    LATER: ClassVar[tuple[str, ...]] = ("normalize", "size")

    normalize: Literal["none", "model"] = Field(
        "none", description="how inputs are normalized. none: unchanged, as the benchmark gives them; model: with the "
        "normalization of the pretrained weights, the default if known")
    size: int | None = Field(
        None, ge=1, description="side length of the inputs in pixels, if photos have several sizes: the shorter side "
        "is resized to it, then the center is cropped; none: the model's size")


@hookimpl
def clbench_benchmarks() -> Sequence[BenchmarkInfo]:
    """Return the built-in benchmarks."""
    streams, user_data = "clbench.data.avalanche.benchmarks:", "clbench.data.own."
    own_options = "clbench.data.own_options:"
    return (
        BenchmarkInfo("split-mnist-5k", streams + "split_mnist_5k",
                      "5 tasks of 2 digits of MNIST (4,000 train, 1,000 test); no download",
                      SplitOptions, cached=True),
        BenchmarkInfo("split-mnist", streams + "split_mnist",
                      "5 tasks of 2 digits of MNIST (60,000 train, 10,000 test)", SplitOptions, cached=True,
                      files=MNIST, data=DATA[MNIST]),
        BenchmarkInfo("split-fashion-mnist", streams + "split_fashion_mnist",
                      "5 tasks of 2 classes of Fashion-MNIST (60,000 train, 10,000 test)", SplitOptions, cached=True,
                      files=FASHION_MNIST, data=DATA[FASHION_MNIST]),
        BenchmarkInfo("split-cifar10", streams + "split_cifar10",
                      "5 tasks of 2 classes of CIFAR-10 (50,000 train, 10,000 test)", CIFAROptions, cached=True,
                      files=CIFAR10, data=DATA[CIFAR10]),
        BenchmarkInfo("split-cifar100", streams + "split_cifar100",
                      "10 tasks of 10 classes of CIFAR-100 (50,000 train, 10,000 test)", CIFAR100Options, cached=True,
                      files=CIFAR100, data=DATA[CIFAR100]),
        BenchmarkInfo("split-cifar100-b50", streams + "split_cifar100_b50",
                      "CIFAR-100: 50 classes, then 5 tasks of 10 classes (Hou et al. 2019)", B50Options,
                      cached=True, files=CIFAR100, data=DATA[CIFAR100]),
        BenchmarkInfo("permuted-mnist", streams + "permuted_mnist",
                      "MNIST with differently permuted pixels in each task (Goodfellow et al. 2013)",
                      PermutedOptions, scenarios=("domain", "task", "class"), seeded=True, cached=True, files=MNIST,
                      data=DATA[MNIST]),
        BenchmarkInfo("rotated-mnist", streams + "rotated_mnist",
                      "MNIST, rotated by a different angle in each task (Lopez-Paz & Ranzato 2017)",
                      RotatedOptions, scenarios=("domain", "task"), cached=True, files=MNIST, data=DATA[MNIST]),
        *NAMED,
        BenchmarkInfo("images:*", user_data + "photos:images", "photos in folders, one for each class, as in "
                      "images:photos", own.ImagesOptions, any_name=True, suffixes=("/",),
                      cached=True, files=user_data + "lists:image_files", check=user_data + "lists:image_files"),
        BenchmarkInfo("arrays:*", user_data + "arrays:arrays", "embeddings or images in a .npz, .safetensors, .npy or "
                      ".parquet file", own.ArraysOptions, any_name=True,
                      suffixes=(".npz", ".npy", ".safetensors"), cached=True,
                      files=own_options + "array_files", check=own_options + "check_arrays"),
        BenchmarkInfo("table:*", user_data + "columns:table", "numeric columns and a label column in a .csv, .tsv, "
                      ".txt, .jsonl or .parquet file", own.TableOptions, any_name=True,
                      suffixes=(".csv", ".tsv", ".parquet"), cached=True,
                      files=user_data + "columns:table_files", check=own_options + "check_path"),
        BenchmarkInfo("text:*", user_data + "texts:text", "texts and labels in a .csv or .jsonl file or a folder, for "
                      "models hf:NAME", own.TextOptions, any_name=True, suffixes=(".jsonl",), cached=True,
                      files=user_data + "texts:text_files", check=own_options + "check_path"),
        BenchmarkInfo("instructions:*", user_data + "instruction_streams:instructions",
                      "prompts and responses, one file or folder per task, for models hf:NAME",
                      own.InstructionOptions, scenarios=("task", "domain"), any_name=True, cached=True,
                      files=user_data + "instruction_streams:instruction_files", check=own_options + "check_path",
                      objective=CAUSAL_LM.name),
        BenchmarkInfo("split-newsgroups", user_data + "texts:newsgroups",
                      "10 tasks of 2 groups of 20 Newsgroups, for models hf:NAME",
                      NewsgroupsOptions, cached=True, files=user_data + "texts:newsgroups_files",
                      data=DATA[NEWSGROUPS]),
        BenchmarkInfo("hf:*", user_data + "hub:hub",
                      "a data set on the Hugging Face Hub, or a local one (extra clbench[hf])", own.HubOptions,
                      any_name=True, cached=True,
                      files=user_data + "hub:hub_files"),
        BenchmarkInfo("*:*", streams + "custom", "Avalanche benchmark that a function returns, as in "
                      "path/to/file.py:function", CustomOptions, any_name=True,
                      names_code=True, check="clbench.core.user_code:check_file"),
    )

