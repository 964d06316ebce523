"""Avalanche's strategies (avalanche.training.supervised, 0.6) as methods of clbench.

The harness provides the stream, its samples as inputs of the model, the optimizer and its schedule, the budget, the
outputs that take part, and the evaluation. It also provides the batches and their order, except for strategies with
their own loader. The strategy's own code provides the loop, the losses and the plugins. After each task, its state is
collected from its attributes and registered as buffers (as parameters if it belongs to a network), so that it is
counted. docs/avalanche.md says what differs from clbench's own methods.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clbench import Network, Options, Samples, Strategy, StreamInfo, Task
from clbench.strategy.granted import Budget
from clbench.training import precision
from clbench_avalanche import driver
from clbench_avalanche.experience import Experience, Items
from clbench_avalanche.models import Columns, MultiHead, adapted, forget_features
from clbench_avalanche.options import AvalancheOptions
from clbench_avalanche.state import AgentState, agent_state


class Avalanche(Strategy):
    """A strategy of Avalanche; it is built when the first task begins, since it needs its optimizer then."""

    options: AvalancheOptions
    not_resumable = "Avalanche keeps its state in objects of its own, which no checkpoint holds"
    roles = (("replay__*", "replay"), ("kept__*buffer_weights", "counters"), ("kept__*buffer_score", "counters"),
             ("kept__*_labels", "counters"), ("kept__*ext_mem_list_y", "counters"), ("kept__*memory_[yt]*", "counters"),
             ("kept__*prev_model*", "old network"), ("kept__*init_model*", "old network"),
             ("kept__*initial_weights*", "old network"),
             ("kept__saved_weights*", "heads"), ("kept__*", "importance"),
             ("model.classifier.active_units_*", "counters"), ("model.layers.*", "columns"),
             ("model.classifier.classifiers.*", "heads"))

    def __init__(self, model: Network, stream_info: StreamInfo, options: Options | None = None) -> None:
        """Bring the model into the form that the strategy expects.

        Raises:
            SpecError: the strategy does not fit the model.
        """
        assert isinstance(options, AvalancheOptions)
        super().__init__(model, stream_info, options)
        self.model = adapted(model, options.strategy, stream_info.tasks, stream_info.scenario)
        self.agent: Any = None
        self.experiences: list[Experience] = []  # for `JointTraining`, which needs all tasks so far
        self.samples = 0  # number of samples of the stream so far
        self.trained = 0  # number of weights that the last task's steps could change
        self.seen: set[int] = set()  # classes

    def fit(self, task: Task, budget: Budget) -> Tensor:
        """Let Avalanche train on the task.

        Raises:
            SpecError: the memory is too small for the strategy (`without_waiting`).
        """
        items = Items(task.train, self.stream_info.prepare, budget.augment)
        experience = Experience(task, items, self._label(task.index), self.samples, self.seen)
        is_joint = self.options.strategy == "JointTraining"
        if self.agent is None or is_joint:  # JointTraining trains only once; a new one starts from the current weights
            self.agent = self._build(budget)
        elif budget.recipe.optimizer_state == "reset":
            self.agent.optimizer = budget.optimizer(self.agent.model.parameters())
            self.agent.optimized_param_id = None
        self.experiences = [*self.experiences, experience] if is_joint else []
        if not isinstance(self.model, Columns | MultiHead):  # these models mask by task label
            self.agent._criterion.active = self.class_mask[:task.index + 1].any(0)
        recorder = driver.StepRecorder(budget)
        self.agent.plugins.append(recorder)
        self.agent.batch_order = driver.BatchOrder([*range(self.samples, self.samples + len(items))],
                                                   lambda: items.batch(budget.following()))
        with (driver.seeded(self.stream_info.generator), driver.without_deprecations(),
              driver.without_waiting(self.agent)):
            self.agent.train(self.experiences if is_joint else experience, eval_streams=[])
        self.agent._train_cleanup()  # JointTraining does not clear its last batch
        self.agent.plugins.remove(recorder)
        self.agent.batch_order = None
        self.model = self.agent.model  # GDumb makes a new one for each task
        forget_features(self.model)
        self._keep(agent_state(self.agent), task.train)
        self.samples += len(items)
        self.trained = recorder.trainable
        self.seen |= set(task.classes)
        return torch.stack(recorder.losses)

    def trainable(self) -> int:
        """Return the number of weights that the last task's steps could change."""
        return self.trained

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C] for inputs x [N, *input_shape], with the corrections of the strategy's plugins."""
        model: Any = self.model
        logits: Tensor = model.logits(x, self._label(task or 0)) if hasattr(model, "logits") else model(x)
        forget_features(model)
        if self.agent is None:
            return logits
        self.agent.mb_output = logits
        self.agent._after_eval_forward()
        logits, self.agent.mb_output = self.agent.mb_output, None
        return logits

    def _label(self, task: int) -> int:
        """Return the task label for Avalanche; in class-incremental streams it is always 0."""
        return task if self.stream_info.task_given else 0

    def _build(self, budget: Budget) -> Any:
        """Return the strategy, untrained."""
        name = self.options.strategy
        model_arguments: dict[str, dict[str, Any]] = {  # arguments that depend on the model
            "CWRStar": {"cwr_layer_name": "classifier"},
            "ER_AML": {"feature_extractor": getattr(self.model, "features", None)},
            "GSS_greedy": {"input_size": self.stream_info.input_shape}}
        options = {**self.options.model_dump(), **model_arguments.get(name, {})}
        device = self.class_mask.device
        forward = precision.autocast_context(budget.recipe, device)
        return driver.build(name, self.model, driver.Masked(), budget, device, forward, options)

    def _keep(self, state: AgentState, new: Samples) -> None:
        """Register the state of the strategy as buffers and parameters.

        Its memories refer to whole data sets but use only a few of their samples; only these samples are counted. They
        come from the samples registered before and from the task's samples.
        """
        replay_buffers = {name: buffer for name, buffer in self.named_buffers(recurse=False)
                          if name.startswith("replay__")}
        for name in [n for n in (*self._buffers, *self._parameters) if n.startswith(("kept__", "replay__"))]:
            delattr(self, name)
        for name, tensor in state.tensors.items():
            own_name = "kept_" + name.replace(".", "_")
            if name in state.weights:
                self.register_parameter(own_name, nn.Parameter(tensor, requires_grad=False))
            else:
                self.register_buffer(own_name, tensor)
        if state.stored:
            self.register_buffer("replay__stored", torch.cat(state.stored))
        if not state.places:
            return
        places = torch.tensor(sorted(state.places), device=new.index_device)
        samples = new.take(places[places >= self.samples] - self.samples)
        if "replay__places" in replay_buffers:
            is_kept = torch.isin(replay_buffers["replay__places"], places)
            columns = (replay_buffers[f"replay__{field}"][is_kept] for field in ("x", "y", "tasks"))
            samples = Samples.concat(Samples(*columns), samples)
        for field, column in (("x", samples.x), ("y", samples.y), ("tasks", samples.tasks)):
            self.register_buffer(f"replay__{field}", column)
        # Needed in the next task to find the samples; not persistent, so not counted.
        self.register_buffer("replay__places", places, persistent=False)
        if state.logits:
            self.register_buffer("replay__logits", torch.cat(state.logits))
