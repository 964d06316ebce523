"""Base classes of strategies with separate parts per task and of strategies with a frozen base; task-ID inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench.core import tokens
from clbench.core.errors import OptionError, SpecError
from clbench.core.scenario import Outputs
from clbench.data.samples import Samples
from clbench.models.network import SAME, Network
from clbench.strategy.base import Prediction, Strategy, StreamInfo, Task
from clbench.strategy.common_options import Infer, InferOptions, StartOptions
from clbench.strategy.gaussians import TaskGaussians, class_means, features_of
from clbench.strategy.granted import PhaseSpec
from clbench.strategy.objectives import prompts_of


class FrozenBase(Strategy, ABC):
    """Base of strategies with a frozen base, which is trained in the first of two phases of the first task if needed.

    It must come before base classes such as `PerTaskStrategy`. Subclasses make the base trainable in `before_task` if
    the task has two phases, and define `base_learned`.
    """

    options: Any  # has the fields of StartOptions, among others

    def phases(self, task: Task) -> int | Sequence[float]:
        """Return 2 for the first task with `base = task1`: a phase for the base, and one for the parts on top of it.

        Return 1 if the model has only a head, so that no steps are used for a base that does not exist.
        """
        phases: int = self.options.phases(task.index) if self.model.has_body else 1
        return phases

    def before_phase(self, task: Task, phase: PhaseSpec) -> None:
        """Call `base_learned` after the phase that trains the base."""
        if phase == 1:
            self.base_learned(task)

    @abstractmethod
    def base_learned(self, task: Task) -> None:
        """Freeze the trained base, and make the parts on top of it trainable."""


class TaskHead(nn.Linear):
    """A linear head for one task's classes; its logits cover all outputs and are -inf outside the task's own.

    Args:
        features: width D of its input.
        classes: the task's outputs, in the order of the head's own units.
        outputs: number of all outputs, C.
        like: a tensor with the device and dtype of the head.
    """

    place: Tensor

    def __init__(self, features: int, classes: tuple[int, ...], outputs: int, like: Tensor) -> None:
        """Initialize the weights as `nn.Linear` does."""
        super().__init__(features, len(classes), device=like.device, dtype=like.dtype)
        # A buffer and not an attribute, because the order of classes may differ between members of a stack.
        self.register_buffer("place", output_places(classes, outputs).to(like.device), persistent=False)

    def forward(self, features: Tensor, lateral: Tensor | None = None) -> Tensor:
        """Return logits [N, C] of features [N, D]; `lateral` [N, own classes] is added to the head's own logits."""
        logits = super().forward(features)
        if lateral is not None:
            logits = logits + lateral
        return placed(logits, self.place)


def output_places(classes: Sequence[int], outputs: int) -> Tensor:
    """Return the index of each output among a task's K classes, int64 [outputs]; K for outputs of other tasks."""
    place = torch.full((outputs,), len(classes))
    place[list(classes)] = torch.arange(len(classes))
    return place


def placed(logits: Tensor, place: Tensor) -> Tensor:
    """Return logits [N, outputs], given a task's logits [N, K] and `output_places`; -inf at outputs of other tasks."""
    return F.pad(logits, (0, 1), value=float("-inf")).index_select(1, place)


class PerTaskStrategy(Strategy, ABC):
    """Base of strategies that use a separate part for each task; subclasses define the parts.

    With a given task ID, a task that is not learned yet gets the logits of the starting model (the shared, frozen
    weights and the original head), which are finite. Without a task ID, only learned tasks compete. Each sample gets
    the logits of its inferred task. Before the first task is learned, the starting model predicts, and the task is -1.

    All parts of a language model use the model's own head, so the head of each task is `nn.Identity`.
    """

    roles: tuple[tuple[str, str], ...] = (("heads.*", "heads"), ("prototype_*", "prototypes"),
                                          ("gaussians.moment", "second moments"), ("gaussians.*", "prototypes"))
    options: InferOptions
    distance_order = 2.0  # p of the p-norm for the distance to prototypes; 2 is the Euclidean distance

    def __init__(self, model: Network, stream_info: StreamInfo, options: InferOptions | None = None) -> None:
        """Freeze the starting model. Subclasses unfreeze parameters that they train in `before_task`.

        Raises:
            SpecError: there are no classes, and the task would be inferred by another rule than `gaussian`.
        """
        super().__init__(model, stream_info, options if options is not None else InferOptions())
        if not stream_info.has_classes and not stream_info.task_given and self.options.infer != "gaussian":
            source = "language model's items is inferred from their prompts" if stream_info.predicts_tokens else (
                "sample with a numeric target is inferred from its features")
            raise OptionError(f"without task IDs, the task of a {source}", "infer=gaussian", "choose --scenario task")
        self.heads = nn.ModuleList()
        self.learned = 0  # number of learned tasks; during training, there is one more head
        weight = self.model.head.weight
        self.gaussians = (TaskGaussians(weight.shape[1], weight.device) if self.options.infer == "gaussian" else None)
        self.model.requires_grad_(False)

    @abstractmethod
    def forward_task(self, x: Tensor, task: int) -> Tensor:
        """Return the logits [N, C] of the part of `task`, whose head exists; -inf outside the task's classes."""

    @property
    def outputs(self) -> Outputs:
        """Return `own`, because a task's head has outputs for its own classes only."""
        return "own"

    @abstractmethod
    def shared_features(self, x: Tensor) -> Tensor:
        """Return features [N, D] of inputs [N, *input_shape] that do not depend on the task and do not change later."""

    @property
    def head_inputs(self) -> int:
        """Return the input width of a task's head. Default: the width of the model's features."""
        return self.model.head.in_features

    def before_task(self, task: Task) -> None:
        """Freeze everything and add the task's head. It is the first new layer, so all methods get the same head."""
        if task.index != len(self.heads):
            raise ValueError(f"tasks come in order: expected task {len(self.heads) + 1}, got task {task.index + 1}")
        self.require_classes(task.index, task.classes)
        self.requires_grad_(False)
        self.heads.append(nn.Identity() if self.stream_info.predicts_tokens else
                          TaskHead(self.head_inputs, task.classes, self.stream_info.classes, self.model.head.weight))

    def require_classes(self, task: int, classes: Sequence[int]) -> None:
        """Check that the option `infer` works with these classes of a task; runs call it before any task is learned."""
        if self.options.infer == "entropy" and not self.stream_info.task_given and len(classes) == 1:
            rules = get_args(type(self.options).model_fields["infer"].annotation)
            raise SpecError(f"{type(self).__name__}: infer = entropy cannot weigh task {task + 1}, which has a single "
                            "class (its entropy is always 0); choose infer = "
                            + " or ".join(rule for rule in rules if rule != "entropy"))

    def after_task(self, task: Task) -> None:
        """Count the task as learned, and store the statistics of its shared features that task-ID inference needs."""
        if not self.stream_info.has_classes and self.gaussians is not None:  # one Gaussian for the task
            x = prompts_of(task.train.x, task.train.y) if self.stream_info.predicts_tokens else task.train.x
            samples = Samples(x, torch.zeros(len(x), dtype=torch.int64), task.train.tasks)
            self.gaussians.learn(task.index, (0,), features_of(self, samples, self.inference_features))
        elif self.options.infer == "prototype" and self.stream_info.has_classes:
            self.register_buffer(f"prototype_{task.index}", self.class_means(task.train))
        elif self.gaussians is not None:
            self.gaussians.learn(task.index, task.classes, features_of(self, task.train, self.inference_features))
        self.learned = task.index + 1

    def inference_features(self, x: Tensor) -> Tensor:
        """Return the features [N, D] for task-ID inference: shared features, normalized if the options say so.

        For a language model, they are the mean over the tokens.
        """
        features = self.shared_features(x)
        if self.stream_info.predicts_tokens:
            token_mask = tokens.present(x)[:, :features.shape[1]].unsqueeze(2)
            features = (features * token_mask).sum(1) / token_mask.sum(1).clamp(min=1)
        return F.normalize(features, dim=1) if self.options.infer_normalize else features

    def class_means(self, samples: Samples) -> Tensor:
        """Return the prototypes [K, D], the mean features of each of the K classes that occur in raw samples."""
        means, count = class_means(self, samples, self.inference_features)
        means = means[count > 0]
        return F.normalize(means, dim=1) if self.options.infer_normalize else means

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] for inputs [N, *input_shape]; if `task` is None, it is inferred."""
        return self.predict(x, task).logits

    def predict(self, x: Tensor, task: int | None = None) -> Prediction:
        """Return logits [N, C] and, if `task` is None, the inferred task of each sample [N] (-1: no task is learned).

        For a language model, the task is inferred from all tokens of x. If these include a response, call `infer_tasks`
        on the prompts and `predict_by` with its result instead.
        """
        if task is not None:
            return Prediction(self.forward_task(x, task) if task < len(self.heads) else self.model(x))
        if self.stream_info.predicts_tokens:
            return self.predict_by(x, self.infer_tasks(x))
        if not self.learned:
            return Prediction(self.model(x), torch.full((len(x),), -1, device=x.device))
        features = self.inference_features(x) if self.options.from_features else None
        return self.chosen(self.learned_logits(x), features)

    def infer_tasks(self, prompts: Tensor) -> Tensor:
        """Return the task [N] inferred from prompts, tokens [N, L]; -1 if no task has been learned."""
        if not self.learned:
            return torch.full((len(prompts),), -1, device=prompts.device)
        assert self.gaussians is not None
        return self.gaussians.infer(self.inference_features(prompts))

    def predict_by(self, x: Tensor, tasks: Tensor) -> Prediction:
        """Return the outputs of each item by the part of its task [N], and the tasks; -1 means the starting model."""
        if tasks.is_meta:  # a count of FLOPs: every item runs through one part, and all parts cost the same
            return Prediction(self.forward_task(x, 0), tasks)
        out: Tensor | None = None
        for task in torch.unique(tasks).tolist():
            rows = (tasks == task).nonzero().flatten()
            part = self.forward_task(x[rows], task) if task >= 0 else self.model(x[rows])
            out = part.new_empty(len(x), *part.shape[1:]) if out is None else out
            out[rows] = part
        assert out is not None
        return Prediction(out, tasks)

    def chosen(self, logits: Tensor, features: Tensor | None) -> Prediction:
        """Return the inferred task [N] of each sample and the logits [N, C] of this task.

        Args:
            logits: logits of each learned task, [learned tasks, N, C].
            features: `inference_features` [N, D], or None if the task is inferred from logits.
        """
        if self.gaussians is not None:
            assert features is not None
            inferred = self.gaussians.infer(features)
        else:
            means = [self.get_buffer(f"prototype_{t}") for t in range(self.learned)] if features is not None else []
            inferred = infer_task(self.options.infer, logits, features, means, self.distance_order)
        return Prediction(logits[inferred, torch.arange(logits.shape[1], device=logits.device)], inferred)

    def learned_logits(self, x: Tensor) -> Tensor:
        """Return the logits of the part of each learned task, [learned tasks, N, C]."""
        return torch.stack([self.forward_task(x, task) for task in range(self.learned)])


def infer_task(how: Infer, logits: Tensor, features: Tensor | None = None, prototypes: Iterable[Tensor] = (),
               order: float = 2.0) -> Tensor:
    """Return the inferred task [N] of each sample; ties go to the earliest task.

    `entropy` selects the task with the lowest entropy (nats) of the softmax over its own classes. The entropy is not
    normalized, so tasks with more classes can have more entropy. `max-logit` selects the task with the largest logit.
    `prototype` selects the task of the nearest class mean in shared features. For `gaussian`, see `TaskGaussians`.

    Args:
        how: the rule, except `gaussian`.
        logits: [T, N, C], -inf outside a task's own classes.
        features: shared features [N, D], for `prototype`.
        prototypes: class means [K_t, D] of each task, for `prototype`.
        order: p of the p-norm of the distance; 2 is the Euclidean distance.
    """
    if how == "entropy":
        entropy: Tensor = torch.special.entr(logits.softmax(2)).sum(2)
        return entropy.argmin(0)
    if how == "max-logit":
        return logits.amax(2).argmax(0)
    assert features is not None
    # Matrix products would make the distances of a sample depend on its batch.
    nearest = [torch.cdist(features, means, order, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
               for means in prototypes]
    return torch.stack(nearest).argmin(0)


def check_base(method: str, options: StartOptions, stream_info: StreamInfo, model: Network) -> list[str]:
    """Check that option `base` fits the model, and return notes for the record.

    Raises:
        SpecError: `base` needs pretrained weights and there are none, or it ignores them.
    """
    if options.base == "pretrained" and not stream_info.pretrained:
        if not model.has_body:
            raise SpecError(f"{method}: base = pretrained, and this model is a head alone, with nothing before it that "
                            "could be; leave base out")
        raise SpecError(f"{method}: base = pretrained needs a pretrained model; pass --weights FILE, or choose "
                        "base = task1 or random")
    if options.base == "random" and stream_info.pretrained:
        raise SpecError(f"{method}: base = random, but the model is pretrained; leave --weights out, or choose "
                        "base = pretrained or task1")
    if options.base == "task1" and not model.has_body:
        return ["base = task1 trains nothing here: this model is a head alone, and features are its inputs"]
    return []


def conv_like(layer: nn.Conv2d, channels: int, out: int) -> nn.Conv2d:
    """Return a new convolution with the geometry, device and dtype of `layer`, other channels, and no bias."""
    size = (layer.kernel_size[0], layer.kernel_size[1])
    geometry: dict[str, Any] = {k: getattr(layer, k) for k in ("stride", "padding", "dilation", "padding_mode")}
    factory_kwargs: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if type(layer).__name__ == SAME:  # in older releases of timm, it takes neither device nor dtype
        del geometry["padding_mode"]
        return type(layer)(channels, out, size, bias=False, **geometry).to(**factory_kwargs)
    return nn.Conv2d(channels, out, size, bias=False, **factory_kwargs, **geometry)
