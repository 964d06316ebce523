"""The harness's network in the forms that Avalanche's strategies expect."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.models import PNN, MultiTaskModule
from avalanche.models.base_model import BaseModel
from avalanche.models.utils import FeatureExtractorModel
from torch import Tensor, nn

from clbench import Network
from clbench.core.errors import SpecError

MASKED = -1000.0  # logit of other tasks' outputs, as in Avalanche's multi-head classifier; finite, since DER needs that

ONE_HEAD = frozenset({"DER", "FeatureReplay", "GSS_greedy"})


class Single(BaseModel, nn.Module):  # type: ignore[misc]
    """A single head for all tasks, as Avalanche uses for streams without task labels."""

    def __init__(self, network: Network) -> None:
        """Store the parts of the network under the names that Avalanche's strategies look for."""
        super().__init__()
        self.features = nn.Sequential(*network.blocks)
        self.classifier = network.head

    def get_features(self, x: Tensor) -> Tensor:
        """Return features [N, D]."""
        features: Tensor = self.features(x)
        return features

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [N, C]."""
        logits: Tensor = self.classifier(self.features(x))
        return logits

    def logits(self, x: Tensor, label: int) -> Tensor:
        """Return logits [N, C]; the task label is not used."""
        return self.forward(x)


class MultiHead(BaseModel, MultiTaskModule):  # type: ignore[misc]
    """A network whose outputs belong to tasks: the task label determines which outputs are masked."""

    active: Tensor

    def __init__(self, network: Network, tasks: int) -> None:
        """Start with no active output."""
        super().__init__()
        self.features = nn.Sequential(*network.blocks)
        self.classifier = network.head
        classes = network.head.out_features
        self.register_buffer("active", torch.zeros(tasks, classes, dtype=torch.bool), persistent=False)

    def adaptation(self, experience: Any) -> None:
        """Activate an experience's classes; Avalanche calls this before it trains on the experience."""
        super().adaptation(experience)
        self.active[experience.task_label, experience.classes_in_this_experience] = True

    def get_features(self, x: Tensor) -> Tensor:
        """Return features [N, D]."""
        features: Tensor = self.features(x)
        return features

    def forward(self, x: Tensor, task_labels: Tensor | int | None) -> Tensor | dict[int, Tensor]:
        """Return logits [N, C]; without labels those of all tasks seen, by label."""
        if task_labels is None:
            by_label: dict[int, Tensor] = self.forward_all_tasks(x)
            return by_label
        labels = task_labels.to(x.device) if isinstance(task_labels, Tensor) else task_labels
        return self.logits(x, 0).masked_fill(~self.active[labels], MASKED)

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        """Return logits [N, C] of a task."""
        logits = self.forward(x, task_label)
        assert isinstance(logits, Tensor)
        return logits

    def logits(self, x: Tensor, label: int) -> Tensor:
        """Return logits [N, C] without a mask: the harness decides which outputs take part in a test."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class Columns(PNN):  # type: ignore[misc]
    """Avalanche's progressive network; its first column starts with the weights of the harness's network."""

    def __init__(self, network: Network) -> None:
        """Build columns of the network's depth and width.

        Raises:
            SpecError: the network is not a multilayer perceptron with hidden layers of equal width.
        """
        layers = [m for m in network.modules() if isinstance(m, nn.Linear)][:-1]
        plain = all(isinstance(m, nn.Linear) or not [*m.parameters(recurse=False)] for m in network.blocks.modules())
        if len(layers) != len(network.blocks) or not plain or len({layer.out_features for layer in layers}) != 1:
            raise SpecError("avalanche:PNNStrategy has columns of linear layers only, all of one width; take the model "
                            "mlp")
        super().__init__(num_layers=len(layers), in_features=layers[0].in_features,
                         hidden_features_per_column=layers[0].out_features)
        self.classes = network.head.out_features
        for pnn_layer, layer in zip(self.layers, layers, strict=True):
            pnn_layer.columns[0].itoh.load_state_dict(layer.state_dict())

    def logits(self, x: Tensor, label: int) -> Tensor:
        """Return logits [N, C] of the task's column, MASKED outside its head; zeros for a task not seen yet."""
        if label not in self.layers[-1].task_to_module_idx:
            return x.new_zeros(len(x), self.classes)
        logits: Tensor = self.forward_single_task(x, label)
        return nn.functional.pad(logits, (0, self.classes - logits.shape[1]), value=MASKED)


def adapted(network: Network, strategy: str, tasks: int, scenario: str) -> Single | MultiHead | Columns:
    """Return the model for a strategy: `Columns` for `PNNStrategy`, `MultiHead` in scenario `task`, else `Single`.

    Strategies that run the model without task labels have a single head in scenario `task`, too.

    Raises:
        SpecError: the network lacks layers that the strategy trains.
    """
    if strategy == "LFL":
        network.require_body("avalanche:LFL trains features behind a frozen head", "avalanche:LwF")
    if strategy == "PNNStrategy":
        return Columns(network)
    return MultiHead(network, tasks) if scenario == "task" and strategy not in ONE_HEAD else Single(network)


def forget_features(model: nn.Module) -> None:
    """Release the last batch's features, which the model that `FeatureReplay` installs keeps a reference to."""
    if isinstance(model, FeatureExtractorModel):
        model.features = None
