"""iCaRL: exemplars chosen by herding, replayed while old outputs are distilled; the nearest mean of them answers.

The loss of a sample (algorithm 3) is, with g the sigmoid of the present outputs and q that of the old network's,

    - sum over new c of [c = y] log g_c + [c != y] log(1 - g_c)
    - sum over old c of q_c log g_c + (1 - q_c) log(1 - g_c)

summed over outputs and averaged over samples. Exemplars x_1, x_2, ... of a class are picked one after the other, each
so that the mean of those picked is as near as can be to the mean of all features phi (algorithm 4); K is shared out
equally among the classes seen, and fewer per class keep the first. Features are L2-normalised, and so are the means of
exemplars that a sample is compared with (algorithm 1).

With unit vectors, algorithm 4 picks the largest phi(x) . (k mu - sum of those picked), which is how the authors' code
and Avalanche herd. As in PyCIL and Mammoth, nothing is picked twice.

Where reference codes differ. Loss: the authors' code, Avalanche, Mammoth and PyCIL's first version (2021) take the mean
over outputs, a factor in the learning rate (the authors' is 2), and the authors', Avalanche's and Mammoth's push the
outputs of classes not seen yet towards 0, which here are not active (Mammoth's first versions left them out too); later
versions of PyCIL have another loss, cross-entropy and a distillation of the softmax at temperature 2. Means: the
authors', Avalanche's and Mammoth's add each exemplar's mirror image; Mammoth normalises features in herding, in means
and of samples now, which its first versions did nowhere. Capacity: the authors' and Avalanche's round K / classes up,
so that the memory may exceed K.

Exemplars are mixed into the training samples in proportion, so that they are met as often: over a pass as many are
replayed as there are, shared out among its batches (small ones may have none). In all reference codes they lengthen the
epoch instead; here steps are the same for every method, and so are the new samples of each.

Beyond the paper: where the task is known, the mean must be of one of its classes, and a sample's new outputs are those
of its own task. In scenario `domain` every task brings samples of all classes anew. Labels say what these outputs
should be then, so nothing is distilled. A class has a set of exemplars from each task that brings it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clbench import Batch, Network, Options, Samples, Task, World
from clbench.core.errors import SpecError
from clbench.strategy.class_means import class_means, features_of
from clbench.strategy.distillation import Distilled
from clbench.strategy.replay import SampleMemory
from clbench_icarl import ICaRLOptions


class ICaRL(SampleMemory, Distilled):
    """The memory holds set after set of exemplars, each in the order of herding; `means` [C, D] are those of classes.

    The means of a class without exemplars are infinitely far.
    """

    roles = (("means", "prototypes"), *SampleMemory.roles, *Distilled.roles)
    options: ICaRLOptions
    means: Tensor

    def __init__(self, model: Network, world: World, options: Options | None = None) -> None:
        """Start with no exemplars; SpecError where there will be more classes than they are to be."""
        options = options or ICaRLOptions()
        assert isinstance(options, ICaRLOptions)
        super().__init__(model, world, options)
        sets = world.classes * (world.tasks if world.shared_outputs else 1)
        if options.capacity < sets:
            raise SpecError(f"icarl: capacity = {options.capacity} cannot hold an exemplar of each class (and, in "
                            f"scenario domain, task); choose at least {sets}")
        like = model.head.weight
        self.sizes: list[int] = []  # of the sets of exemplars
        self.learned = 0  # tasks
        self.samples = 0  # of the task
        self.owed = 0  # exemplars that the batches so far leave to the next, in shares of 1 / samples
        self.register_buffer("means", like.new_full((world.classes, model.head.in_features), math.inf))

    def before_task(self, task: Task) -> None:
        """Note which outputs labels teach, and begin to share the exemplars out among the task's samples.

        Raises:
            SpecError: there will be more sets of exemplars than exemplars, which only a stream with classes that return
                leaves to be seen here.
        """
        if self.options.capacity < (sets := len(self.sizes) + len(task.classes)):
            raise SpecError(f"icarl: capacity = {self.options.capacity} cannot hold an exemplar of each of the {sets} "
                            f"sets after task {task.index} (a class that returns has a set from each of its tasks); "
                            f"choose at least {sets}")
        super().before_task(task)
        self.samples, self.owed = len(task.train), 0

    def augment_batch(self, batch: Batch) -> Batch:
        """Return the batch with its share of exemplars behind."""
        if not self.sizes:
            return batch
        count, self.owed = divmod(self.owed + sum(self.sizes) * len(batch.y), self.samples)
        return batch.extended(self.sample(count))

    def loss(self, batch: Batch) -> Tensor:
        """Return the binary cross-entropies of new outputs with the labels, and of old ones with what they were."""
        logits = self.model(batch.x)
        targets = F.one_hot(batch.y, self.world.classes).to(logits.dtype)
        old = self.known.any(0) & ~self.taught
        if batch.task:
            targets = torch.where(old, self.old_logits(batch.x).sigmoid(), targets)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return (losses * (old | self.active[batch.tasks])).sum(1).mean()

    def after_task(self, task: Task) -> None:
        """Keep the network, shorten the sets of exemplars there are, add the task's, and take all means anew."""
        super().after_task(task)
        train = task.train.materialized()
        parts = [found.double() for _, found in features_of(self, train, self.unit_features)]
        features = torch.cat(parts)
        sets = [rows for c in task.classes if len(rows := (train.y == c).nonzero()[:, 0])]
        size = self.options.capacity // (len(self.sizes) + len(sets))
        chosen = [rows[herding(features[rows], size)] for rows in sets]
        new = train.take(torch.cat(chosen).to(train.index_device))
        self.store(Samples.concat(self._shortened(size), new) if self.sizes else new)
        self.sizes += [len(rows) for rows in chosen]
        means, _ = class_means(self, self.memory, self.unit_features)
        self.means = F.normalize(means).nan_to_num(nan=math.inf)
        self.learned = task.index + 1

    def _shortened(self, size: int) -> Samples:
        """Return the exemplars with only the first so many of each set."""
        ends = torch.tensor(self.sizes).cumsum(0).tolist()
        self.sizes, before = [min(size, held) for held in self.sizes], self.sizes
        slots = [torch.arange(end - held, end - held + left)
                 for end, held, left in zip(ends, before, self.sizes, strict=True)]
        return self.memory.take(torch.cat(slots).to(self.memory_y.device))

    def unit_features(self, x: Tensor) -> Tensor:
        """Return the normalised features [N, D] of inputs [N, *input_shape]."""
        return F.normalize(self.model.features(x))

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return minus the distance to the mean of each class [N, C], -inf where it has no exemplars.

        While there is none that could answer, the network's logits.
        """
        if not self.learned or (task is not None and task >= self.learned):
            logits: Tensor = self.model(x)
            return logits
        # Without matrix products: the distance of a sample then does not depend on which batch it is in.
        return -torch.cdist(self.unit_features(x), self.means, compute_mode="donot_use_mm_for_euclid_dist")


def herding(features: Tensor, count: int) -> Tensor:
    """Return which rows to pick, int64 [count], or all where there are fewer, so that their mean follows that of all.

    The k-th is argmin_x |mu - (phi(x) + sum of those before) / k| among the rows that are left. On the meta device,
    where features have no values, it is the first rows.

    Args:
        features: phi [n, D].
        count: how many.
    """
    count = min(count, len(features))
    if features.is_meta:
        return torch.arange(count)
    mean, squares = features.mean(0), features.square().sum(1)
    wanted = mean.clone()  # k mu minus the sum of those picked
    left = torch.zeros_like(squares)
    picked = torch.empty(count, dtype=torch.int64, device=features.device)
    for k in range(count):
        best = (squares - 2 * features @ wanted + left).argmin()
        picked[k] = best
        left[best] = math.inf
        wanted += mean - features[best]
    return picked
