"""Results of single test items: correct answers, with the statistics of answers and of scores.

If every seed is tested on the same samples, a t-test over seeds ignores that other test samples would give other
results. More seeds do not help. Here, seeds and samples are crossed random effects with one answer in each cell. The
variance of the mean follows from the mean squares of seeds, samples and their interaction. It is never smaller than
that of seeds or of samples alone. `benchmarks/error_rates.py` simulates the error rate of the test.

Models without classes have scores of items instead (`clbench.results.item_scores`). numpy is imported only when it is
needed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from clbench.results.record_parts import RecordPart
from clbench.results.stats import LEVEL, ROUNDING, Interval, t_quantile

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class ItemResults(RecordPart):
    """Correct and wrong answers by test image, in the order of the complete test part of the data set.

    An image that belongs to several tasks has an answer for each of them, in the order of the tasks.
    """

    LATER: ClassVar[tuple[str, ...]] = ("task_of",)

    ids: str = Field(description="Hash of the benchmark's name and the rows of the images in the test data; equal for "
                     "the same images.")
    count: int = Field(ge=1, description="Number of different images.")
    tasks: int = Field(1, ge=1, description="Number of tasks that each image belongs to.")
    right: str = Field(description="Whether each prediction is correct: base64 of numpy.packbits of a [tasks, images] "
                       "array, row by row.")
    task_of: str = Field("", description="Task of each answer, in the same order: base64 of zlib of uint16 numbers. "
                         "Empty if all tasks have the same number of test images, and in older records.")

    @model_validator(mode="after")
    def _check(self) -> ItemResults:
        """Check that there is a bit and, if tasks are stored, a task for each answer."""
        answers = self.tasks * self.count
        try:
            size, tasks = len(base64.b64decode(self.right, validate=True)), self._tasks()
        except (binascii.Error, zlib.error) as error:
            raise ValueError("right is not base64, or task_of is not base64 of zlib") from error
        if size != -(-answers // 8):
            raise ValueError(f"right has {size} bytes, not a bit for each of {self.tasks} x {self.count} answers")
        if len(tasks) not in {0, 2 * answers}:
            raise ValueError(f"task_of has {len(tasks)} bytes, not 2 for each of {self.tasks} x {self.count} answers")
        return self

    def _tasks(self) -> bytes:
        """Return the tasks of the answers, two bytes each; empty if they are not stored."""
        return zlib.decompress(base64.b64decode(self.task_of, validate=True)) if self.task_of else b""

    @classmethod
    def of(cls, rows: Sequence[npt.NDArray[np.int64]], right: npt.NDArray[np.bool_], source: str) -> ItemResults | None:
        """Return the results of tests, task after task, or None if images differ in their number of tasks.

        Args:
            rows: for each task, the row of each tested image in the test part of the data set, int64.
            right: [N] bool, whether the answer is correct.
            source: name of the benchmark.
        """
        import numpy as np

        images, counts = np.unique(np.concatenate(rows), return_counts=True)
        if len(set(counts.tolist())) != 1:
            return None
        order = np.argsort(np.concatenate(rows), kind="stable").reshape(len(images), -1).T  # stable: tasks in order
        ids = hashlib.sha256(source.encode() + b"\n" + images.astype("<i8").tobytes())
        sizes, task_of = [len(of_task) for of_task in rows], b""
        if len(set(sizes)) > 1:
            task_of = zlib.compress(task_numbers(sizes)[order].astype("<u2").tobytes())
        return cls(ids=ids.hexdigest(), count=len(images), tasks=len(order),
                   right=base64.b64encode(np.packbits(right[order]).tobytes()).decode(),
                   task_of=base64.b64encode(task_of).decode())

    def matrix(self) -> npt.NDArray[np.bool_]:
        """Return whether answers are right, bool [tasks, images]."""
        import numpy as np

        bits = np.frombuffer(base64.b64decode(self.right), np.uint8)
        return np.unpackbits(bits, count=self.tasks * self.count).view(np.bool_).reshape(self.tasks, self.count)

    def scores(self, sizes: Sequence[int], mean: float) -> npt.NDArray[np.float32]:
        """Return a score of each image [images], the mean over its answers weighted by task (see `weight_by_task`)."""
        import numpy as np

        tasks = np.frombuffer(self._tasks(), "<u2") if self.task_of else None
        weighted = weight_by_task(self.matrix().ravel().astype(np.float32), sizes, mean, tasks)
        by_image: npt.NDArray[np.float32] = weighted.reshape(self.tasks, self.count).mean(axis=0)
        return by_image


Z = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson_interval(accuracy: float, samples: float) -> tuple[float, float]:
    """Return the two-sided 95 % interval of an accuracy in [0, 1] that was measured on independent test samples.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference. (scipy supports only
    integer numbers of correct samples, but a mean over seeds is not an integer.)

    >>> [round(end, 4) for end in wilson_interval(0.9, 100)]
    [0.8256, 0.9448]
    """
    share = Z**2 / samples
    middle = (accuracy + share / 2) / (1 + share)
    half = Z / (1 + share) * math.sqrt(accuracy * (1 - accuracy) / samples + share / (4 * samples))
    return max(0.0, middle - half), min(1.0, middle + half)


def difference_error(first: float, second: float, samples: float) -> float:
    """Return the standard error of the difference of two accuracies, each measured on `samples` test samples.

    It assumes independent test sets. Methods share a test set and mostly err on the same samples, so the true error is
    smaller. Only the answers to each sample show by how much.
    """
    return math.sqrt((first * (1 - first) + second * (1 - second)) / samples)


@dataclass(frozen=True)
class Crossed:
    """The mean of crossed seeds and samples, with what is needed for its interval and its test."""

    mean: float
    seeds: int
    samples: int
    seed_variance: float  # variance of the mean if only seeds were random
    sample_variance: float  # variance of the mean if only samples were random
    residual: float  # variance of the mean that is due to their interaction

    @property
    def df(self) -> float:
        """Return the degrees of freedom: Satterthwaite's (1946), at least those of the smaller dimension."""
        total = self.seed_variance + self.sample_variance - self.residual
        seeds, samples = self.seeds - 1, self.samples - 1
        spread = (self.seed_variance**2 / seeds + self.sample_variance**2 / samples
                  + self.residual**2 / (seeds * samples))
        return max(total**2 / spread if spread > 0 else 0.0, float(min(seeds, samples)))

    @property
    def variance(self) -> float:
        """Return the variance of the mean over random seeds and random samples."""
        return max(self.seed_variance + self.sample_variance - self.residual, self.seed_variance, self.sample_variance)

    @property
    def of_samples(self) -> float:
        """Return the part of the variance that more seeds cannot reduce."""
        return max(self.sample_variance - self.residual, 0.0)

    @property
    def interval(self) -> Interval:
        """Return the mean with its 95% interval."""
        half = t_quantile(self.df, (1 + LEVEL) / 2) * math.sqrt(self.variance)
        return Interval(self.mean, self.mean - half, self.mean + half, self.seeds)

    @property
    def p(self) -> float:
        """Return the two-sided p-value of the hypothesis that the mean is 0."""
        from scipy.special import stdtr

        if self.variance <= ROUNDING**2:
            return 1.0 if abs(self.mean) <= ROUNDING else 0.0
        return 2 * float(stdtr(self.df, -abs(self.mean) / math.sqrt(self.variance)))

    def with_seeds(self, seeds: int) -> Crossed:
        """Return what another number of seeds on the same samples would give if means and components stay the same."""
        ratio = self.seeds / seeds
        return replace(self, seeds=seeds, seed_variance=self.seed_variance * ratio, residual=self.residual * ratio,
                       sample_variance=self.of_samples + self.residual * ratio)


def cross(by_seed: Sequence[float], scores: Sequence[npt.NDArray[np.floating]]) -> Crossed:
    """Return the mean over seeds and test samples.

    Args:
        by_seed: the mean of each seed, at least two. It is more exact than the mean of the seed's scores.
        scores: for each seed, the score of each sample [samples], or the difference of two methods' scores.
            If the mean is one over tasks, the scores are those of `weight_by_task`.

    The mean squares are computed in a two-way layout with one value in each cell. Source: Searle, Casella & McCulloch
    1992, Variance Components, section 4.3.
    """
    import numpy as np

    values = np.stack(scores)
    values -= values.mean()
    seeds, samples = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    mean = float(np.mean(by_seed))
    ms_seed = samples * float(np.var(by_seed, ddof=1))
    ms_sample = seeds * float((columns**2).sum()) / (samples - 1)
    rest = float((values**2).sum() - samples * (rows**2).sum() - seeds * (columns**2).sum())
    ms_rest = max(rest, 0.0) / ((seeds - 1) * (samples - 1))
    size = seeds * samples
    return Crossed(mean, seeds, samples, ms_seed / size, ms_sample / size, ms_rest / size)


def weight_by_task(scores: npt.NDArray[np.float32], sizes: Sequence[int], mean: float,
                   tasks: npt.NDArray[np.integer] | None) -> npt.NDArray[np.float32]:
    """Return scores [N] whose plain mean is the mean over tasks, and which vary as much as that mean does.

    A sample of a small task weighs more, so the deviation of each score is multiplied by the sample's weight. If all
    tasks have the same number of test samples, the scores stay as they are.

    Args:
        scores: the score of each sample.
        sizes: the number of test samples of each task.
        mean: the mean over tasks.
        tasks: [N], the task of each sample. If None, every sample gets the root mean square of the weights.
    """
    import numpy as np

    if len(set(sizes)) == 1:
        return scores
    weights = np.array([sum(sizes) / (len(sizes) * size) for size in sizes])
    if tasks is not None:
        values = mean + weights[tasks] * (scores - mean)
    else:
        # The mean square of the samples' weights is the mean of the tasks' weights.
        values = mean + math.sqrt(weights.mean()) * (scores - scores.mean(dtype=np.float64))
    weighted: npt.NDArray[np.float32] = values.astype(np.float32)
    return weighted


def task_numbers(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the task of each test sample, task after task; `sizes` are the numbers of test samples of the tasks."""
    import numpy as np

    return np.repeat(np.arange(len(sizes)), sizes)
