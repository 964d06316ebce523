"""Generative replay: a generator is trained with the network, and generates the inputs that are replayed.

After each task, the network and the decoder are copied. In task t, each step generates as many inputs x' as there are
new ones. The old decoder computes them from standard normal points. The old network labels them, with its predicted
class or with its probabilities. The network and the generator are trained on x and x'; the generator uses no labels:

    loss = 1 / t loss(x, y) + (1 - 1 / t) loss(x', y')

The network's loss is the cross-entropy. The generator's loss is that of a variational autoencoder, divided by the
number of pixels. In scenario `class`, old outputs give the label, and it competes among all classes so far. With
`outputs = own`, no step lowers old outputs on new samples, so accuracy there is about that of `naive`. If the task is
known, the loss on x' is a mean over old tasks, each with its own outputs: an input may be replayed for any of them.

This is "DGR" of van de Ven & Tolias 2019 and of van de Ven's code (GMvandeVen/continual-learning,
`--replay=generative`), and with `targets = soft` "DGR+distill". The generator of Shin et al. is a GAN, which is left
out here. Their share of new samples is a free number (equation 1).

Differences between the code and this implementation:

- Since 2022, the code's default lets all classes of the stream compete (`outputs = all`). In its experiments on CIFAR,
  convolutions that were trained in advance precede the generator. Here, the generator has dense layers on flat inputs
  of any size, which generate poor photos.
- The code's autoencoder has a sigmoid and the cross-entropy on MNIST, and an identity and half the squared error on
  standardized CIFAR. Here, images (uint8) have the former, on pixels in [0, 1] for any preparation. Other inputs have
  the latter.
- Replayed inputs are the decoder's outputs. They are never augmented; new inputs are if the experiment augments them.
- The generator has the optimizer of the training configuration (`generator_lr` changes its learning rate). The code
  has a second Adam with the classifier's learning rate, which takes the same steps.

The stored copies count as storage, and the generator counts among the trained weights. The published training
configuration is that for Split-MNIST: 2000 steps per task. On Permuted MNIST, it was 5000 steps, 1000 units and a
learning rate of 1e-4.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, PhaseSpec, StreamInfo, Task
from clbench.core.device import send
from clbench.core.errors import SpecError
from clbench.strategy.distillation import Distilled, distillation
from clbench_generative_replay import GenerativeReplayOptions
from clbench_generative_replay.generator import Generator, generated


class GenerativeReplay(Distilled):
    """Fine-tuning with replay of inputs that `old_decoder` generates and `old` labels; `generator` is trained along.

    The buffer `noise` [N, Z] or, with replay, [3N, Z] is drawn for each step. Its three parts are the generator's noise
    for new inputs, the latent points to decode, and the generator's noise for the decoded inputs. Pixels p in [0, 1]
    are prepared to `low` + p `span` [*input_shape].
    """

    roles = (("generator.*", "generator"), ("old_decoder.*", "old generator"), *Distilled.roles)
    options: GenerativeReplayOptions
    noise: Tensor
    low: Tensor
    span: Tensor

    def __init__(self, model: Network, stream_info: StreamInfo, options: GenerativeReplayOptions | None = None) -> None:
        """Start with a new generator.

        Raises:
            SpecError: the inputs are texts.
        """
        super().__init__(model, stream_info, options if options is not None else GenerativeReplayOptions())
        if stream_info.is_text:
            raise SpecError("generative-replay generates images or numbers, and this benchmark has texts; choose er")
        like = model.head.weight
        self.generator = Generator(math.prod(stream_info.input_shape), self.options.width, self.options.depth,
                                   self.options.latent).to(like)
        self.old_decoder = frozen(self.generator.decoder)
        for name in ("noise", "low", "span"):
            self.register_buffer(name, like.new_empty(0), persistent=False)
        self.pixels = False  # whether raw inputs are images
        self.rate = 1.0  # the generator's learning rate, divided by that of the training configuration
        self.train(self.training)

    def frozen_modules(self) -> Iterable[nn.Module]:
        """Return the old network and the old decoder."""
        return (self.old, self.old_decoder)

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Set the factor between the learning rate of the training configuration and the generator's."""
        self.rate = 1.0 if self.options.generator_lr is None else self.options.generator_lr / phase.lr

    def learning_rates(self) -> Mapping[str, float]:
        """Return the factor of the generator's learning rate."""
        return {"generator.*": self.rate}

    def prepare_batch(self, batch: Batch) -> Batch:
        """Draw noise for the step; the batch stays as it is, since `loss` makes the replayed inputs."""
        if not len(self.span):
            self._find_range(batch.x[:1])
        count = len(batch.y) * (3 if batch.task else 1)
        noise = torch.randn(count, self.options.latent, generator=self.stream_info.generator)
        self.noise = send(noise.to(self.model.head.weight.dtype), self.noise.device)
        return batch

    def _find_range(self, raw: Tensor) -> None:
        """Set `low` and `span` from prepared black and white images if the raw inputs [1, ...] are images."""
        self.pixels = raw.dtype == torch.uint8
        like = self.model.head.weight
        if self.pixels:
            self.low, white = (self.stream_info.prepare(torch.full_like(raw, value))[0].to(like) for value in (0, 255))
            self.span = white - self.low
        else:
            self.low, self.span = (like.new_full(self.stream_info.input_shape, value) for value in (0.0, 1.0))

    def loss(self, batch: Batch) -> Tensor:
        """Return the weighted sum of the losses of network and generator on new and on generated inputs."""
        inputs = ((batch.x - self.low) / self.span).flatten(1)
        noise = torch.split(self.noise, len(inputs))
        loss = super().loss(batch) + self.generator.loss(inputs, noise[0], self.pixels)
        if not batch.task:
            return loss
        share, past_inputs = 1 / (batch.task + 1), generated(self.old_decoder, noise[1], self.pixels)
        x = self.low + self.span * past_inputs.view(batch.x.shape)
        replay_loss = self.replay_loss(self.model(x), self.old_logits(x), batch.task)
        return share * loss + (1 - share) * (replay_loss + self.generator.loss(past_inputs, noise[2], self.pixels))

    def replay_loss(self, logits: Tensor, old: Tensor, task: int) -> Tensor:
        """Return the loss, a scalar, of logits [N, C] of generated inputs, given the old network's logits [N, C]."""
        losses, temperature = [], self.options.temperature
        for outputs in self.old_outputs(task):
            among = outputs if self.stream_info.task_given else self.class_mask.any(0)
            if self.options.targets == "soft":
                soft = distillation(logits, old, outputs, temperature, among)
                losses.append(soft * temperature**2 / among.sum() if self.options.soft_loss == "scaled-mean" else soft)
            else:
                labels = old.masked_fill(~outputs, float("-inf")).argmax(1)
                losses.append(F.cross_entropy(logits.masked_fill(~among, float("-inf")), labels))
        return torch.stack(losses).mean()

    def after_task(self, task: Task) -> None:
        """Store copies of the network and of the decoder."""
        super().after_task(task)
        self.old_decoder = frozen(self.generator.decoder)
        self.train(self.training)


def frozen(decoder: nn.Module) -> nn.Module:
    """Return a frozen copy of a decoder."""
    return copy.deepcopy(decoder).requires_grad_(False)
