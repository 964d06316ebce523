"""PODNet: replay with several weight vectors per class, and distillation of pooled feature maps.

A class has K proxies. With normalized features h and proxies theta, its similarity to a sample is

    y_c = sum over k of softmax_k(<theta_ck, h>) <theta_ck, h>

From the second task on, the loss on new samples and exemplars is as follows. Each term is a mean over its samples.

    NCA loss of eta y
    + lambda_c sqrt(n / n_new) POD-spatial:  mean over stages of |p(f_l) - p(f'_l)|
    + lambda_f sqrt(n / n_new) POD-flat:     1 - cos(h, h')

Here, f_l are the feature maps at the end of stage l before the activation, f' and h' are those of the old network, and
n counts classes so far. p squares a map [channels, height, width], sums it over the width and over the height, and
normalizes both sums together. eta is learned. The proxies of old classes do not change. At the end, only the head is
fine-tuned, on equally many exemplars of each class (`finetune_steps`).

The NCA loss of a sample with label y is, for s = eta y:

    paper:  max(0, log(sum over i != y of exp s_i) - (s_y - eta delta))
    code:   log(sum over i != y of exp s_i + exp max_i s_i) - s_y

The authors' code (arthurdouillard/incremental_learning.pytorch) subtracts the margin from all similarities, so it
cancels. It omits the hinge. In the denominator, it replaces the label's term, which the paper omits, by the largest
similarity. PyCIL does the same. The option `nca` chooses between them.

Other differences:

- The authors' code takes 2 y_c - 2, the negative squared distance of unit vectors. The paper and PyCIL take the cosine,
  as here. With eta = 2, training starts as in the authors' code.
- A stage is a sequence of blocks whose maps have the same shape. The authors' network counts its last residual unit as
  a fourth stage; PyCIL has three. Blocks without maps (dense layers, tokens) have no POD-spatial. The record has a note
  if no block has maps.
- The authors' code initializes a class's proxies with the centers of k-means of its normalized features, scaled to the
  mean length of the other proxies (`imprint`). Here k-means starts at random features and has 20 iterations, without
  restarts. PyCIL does not imprint.
- Fine-tuning: the authors train the head for 20 epochs at half of the first learning rate, including the proxies of old
  classes, as here. PyCIL trains everything except these proxies. Here the steps are a share of the task's steps,
  because all methods have the same budget, and eta is not trained. The authors' rate is constant in this phase; here,
  the experiment's schedule starts again, so a cosine falls to 0.
- lambda_c is 3 in the paper and the authors' code, and 5 in PyCIL.
- The authors' code limits each number of a gradient to 5 and uses color jitter; here the experiment determines this.
  The paper's second evaluation, by the nearest mean of exemplars, is left out.
- The paper stores 20 exemplars per class (`per_class = 20`); by default, the classes so far share `capacity` here.
  Exemplars are herded and mixed in (clbench.strategy.herding); the codes append them to the task's samples.

Beyond the paper: if the task is known, labels compete within a task. Outputs that are both old and the task's own
(scenario `domain`, classes that return) are not fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from clbench_lucir.strategy import CosineReplay
from torch import Tensor

from clbench import Batch, Network, Options, PhaseSpec, Samples, StreamInfo, Task
from clbench.core.device import send
from clbench.models.network import Block
from clbench.strategy.gaussians import features_of
from clbench_podnet import PODNetOptions
from clbench_podnet.head import ProxyHead, clustered

MAP_DIMS = 4


class PODNet(CosineReplay):
    """Fine-tuning on new samples and exemplars with proxies and distillation, then of the head alone on exemplars."""

    method = "podnet"
    loss_is_mean = True
    options: PODNetOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Start with no exemplars."""
        options = options or PODNetOptions()
        assert isinstance(options, PODNetOptions)
        super().__init__(model, stream_info, options, ProxyHead(model.head, options.eta, options.proxies))
        self.learning = [name for name, p in model.named_parameters() if p.requires_grad]
        self.finetunes = False  # whether this is the second phase
        if stream_info.is_text or not self._has_maps():
            self.notes.append("podnet: no block has feature maps, so features alone are distilled (flat)")

    @torch.no_grad()
    def _has_maps(self) -> bool:
        """Return whether a block has feature maps, for an input of zeros."""
        self.eval()
        maps, _ = stage_maps(self.model, self.model.head.weight.new_zeros(1, *self.stream_info.input_shape))
        self.train()
        return bool(maps)

    @torch.no_grad()
    def imprint(self, task: Task, new: list[int]) -> None:
        """Set the proxies of new classes to centers of their features, scaled to the average length of old proxies."""
        weight = self.head.weight
        parts = [(part.y, features) for part, features in features_of(self, task.train, self.unit_features)]
        labels, features = torch.cat([y for y, _ in parts]), torch.cat([part for _, part in parts])
        draws = torch.rand(len(labels), generator=self.stream_info.generator, dtype=torch.float64)
        draws, length = send(draws, features.device), weight[self.met].norm(dim=2).mean()
        for output in new:
            rows = (labels == output).nonzero()[:, 0]
            if len(rows):
                weight[output] = clustered(features[rows], draws[rows], weight.shape[1]).to(weight.dtype) * length

    def before_task(self, task: Task) -> None:
        """Make the whole network trainable again, and initialize the proxies of new classes."""
        self._let_learn(False)
        super().before_task(task)

    def phases(self, task: Task) -> int | Sequence[float]:
        """Return the shares of training and fine-tuning; in the first task, one phase."""
        share = self.options.finetune_steps
        return (1 - share, share) if task.index and share else 1

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Choose exemplars before the second phase, which trains only the proxies."""
        super().before_phase(task, phase)
        if phase == 1:
            self.restore_weights(task)
            self.keep_exemplars(task)
            self._let_learn(True)

    def _let_learn(self, finetunes: bool) -> None:
        """Train only the proxies of all classes if `finetunes` is set, else the whole network."""
        self.finetunes = finetunes
        for name in self.learning:
            self.model.get_parameter(name).requires_grad_(not finetunes or name == "head.weight")
        self.train(self.training)

    def phase_samples(self, task: Task, phase: PhaseSpec) -> Samples | None:
        """Return the exemplars for the second phase."""
        return self.memory if phase == 1 else None

    def learning_rates(self) -> Mapping[str, float]:
        """Return the factor of eta's learning rate, or in fine-tuning that of the proxies' learning rate."""
        return {"model.head.weight": self.options.finetune_rate} if self.finetunes else super().learning_rates()

    def frozen_modules(self) -> Sequence[torch.nn.Module]:
        """Return the old network; in the second phase also the blocks."""
        return (self.old, self.model.blocks) if self.finetunes else (self.old,)

    def trainable(self) -> int:
        """Return the number of trained values: all but old classes' fixed proxies, which only fine-tuning trains."""
        return super().trainable() + (self.fixed * self.head.weight[0].numel() if self.finetunes else 0)

    def prepare_batch(self, batch: Batch) -> Batch:
        """Return the batch with its share of exemplars appended; in the second phase, return it unchanged."""
        return batch if self.finetunes else super().prepare_batch(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Return the NCA loss, plus both distillations if there is an old network and the blocks are trained."""
        maps, features = stage_maps(self.model, batch.x)
        fixes = batch.task > 0 and not self.finetunes
        similarities = self.head.scale * self.head.cosines(features, self.weight if fixes else None)
        loss = self.nca(self.mask(similarities, batch.tasks), batch.y)
        if not fixes:
            return loss
        with torch.no_grad():
            old_maps, old_features = stage_maps(self.old, batch.x)
        _, new_count = self.class_counts()
        strength = ((self.known.any(0) | self.taught).sum() / new_count).sqrt()
        loss = loss + strength * self.options.flat * (1 - F.cosine_similarity(features, old_features)).mean()
        if not maps:
            return loss
        distances = [(pooled(a) - pooled(b)).norm(dim=1).mean() for a, b in zip(maps, old_maps, strict=True)]
        return loss + strength * self.options.spatial * torch.stack(distances).mean()

    def nca(self, similarities: Tensor, y: Tensor) -> Tensor:
        """Return the NCA loss of scaled similarities [N, C], -inf where an output does not compete; a scalar."""
        label = F.one_hot(y, similarities.shape[1]) > 0
        others = similarities.masked_fill(label, float("-inf"))
        target = similarities.gather(1, y[:, None])[:, 0]
        if self.options.nca == "code":
            largest = similarities.amax(1, keepdim=True)
            return (torch.cat([others, largest], 1).logsumexp(1) - target).mean()
        lowest = torch.finfo(others.dtype).min / 2  # the gradient of logsumexp is NaN if nothing competes
        margin = self.head.scale * self.options.margin
        return (others.clamp(min=lowest).logsumexp(1) - target + margin).clamp(min=0).mean()

    def restore_weights(self, task: Task) -> None:
        """Restore the weights of old classes, unless fine-tuning has changed them."""
        if not self.finetunes:
            super().restore_weights(task)

    def keep_exemplars(self, task: Task) -> None:
        """Choose exemplars, unless this was done before fine-tuning."""
        if not self.finetunes:
            super().keep_exemplars(task)


def stage_maps(model: Network, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the maps [N, channels, height, width] at the end of each stage, and the features [N, D], of inputs x.

    Maps are those before the activation; a stage is a sequence of blocks with maps of one shape.
    """
    maps: list[Tensor] = []
    for block in model.blocks:
        if isinstance(block, Block) and type(block).forward is Block.forward:
            body = block.body(x)
            if body.dim() == MAP_DIMS:
                maps = [*maps[:-1], body] if maps and maps[-1].shape == body.shape else [*maps, body]
            x = block.activation(body)
        else:
            x = block(x)
    return maps, x


def pooled(maps: Tensor) -> Tensor:
    """Return the normalized sums of squares of maps [N, C, H, W] over the width and the height, [N, C (H + W)]."""
    squares = maps.square()
    return F.normalize(torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], 1))
