"""DualPrompt (Wang et al. 2022, arXiv 2204.04799): prompts of all tasks and of each task in a frozen transformer.

    attention of block b = softmax(Q [P_K; K]^T / sqrt(d)) [P_V; V]          prefix tuning, Q, K and V of the tokens
    P = G in the first blocks, one for all tasks; P = E_t in the blocks after them, one for each task t
    q = the frozen network's features of x;  loss = cross-entropy + pull * (1 - cos(q, key_t)) in training task t
    test: E of the given task, else of the task so far whose key is most like q;  logits = head(class token)

G and the head are trained on all tasks, E_t and key_t on task t alone. By default, the cross-entropy is over the
classes of the current task alone, as in all reference codes.

Reference codes differ from the paper and from each other. This implementation follows the paper and, if the paper does
not specify a detail, the authors' code (google-research/l2p):

- The paper puts prompts in front of the inputs of attention, and splits a prompt of length L into L/2 keys and L/2
  values. The authors' code, its PyTorch port and clbench put L keys and L values after the projections. CODA's
  re-implementation (GT-RIPL/CODA-Prompt) splits the prompt, with L_g = 6 because 5 is odd.
- L_g = 5 and L_e = 20 are the values of the paper, and of the authors for ImageNet-R. Their code has L_e = 5 for
  Split-CIFAR-100.
- A task has one key for all blocks, as in the paper and the authors' code. CODA's re-implementation has a key for each
  block, so blocks may choose different tasks. It also has the sum of (1 - cos) over a batch instead of the mean.
- In all codes, the keys of tasks that have not been learned yet take part in the match at test time. In the authors'
  and the port's configuration for Split-CIFAR-100, a batch votes (`batchwise_prompt`; not for ImageNet-R). Here, only
  tasks that have begun compete, and each sample is matched separately.
- In the authors' code, the port and PILOT, a task's E starts as the last task's (`shared_prompt_pool`). CODA's
  re-implementation draws it.
- Prompts and keys start uniform in [0, 0.01), as in the authors' code; in the port in [-1, 1), in CODA's in [0, 1).
- `pull` is 1 in the authors' code, the port and CODA's re-implementation, and 0.1 in PILOT's configuration.
- No code uses a task ID to choose E at test time. Here, scenario `task` does, because E_t was trained for that task.

The authors train with Adam at a constant learning rate of 0.005 (ImageNet-R) or 0.03 (Split-CIFAR-100) for 256 samples
per step, scaled in proportion to the batch, and clip gradients to norm 1. PILOT has 0.001. `recipe=published` is the
authors' configuration for ImageNet-R, which matches the default `e_length = 20`. The network is pretrained
(`base = pretrained`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clbench import Batch, Network, StreamInfo, Task
from clbench.core.errors import SpecError
from clbench.models.network import Prefix
from clbench.strategy.base import Prediction
from clbench.strategy.prompts import PromptedStrategy
from clbench_dualprompt import DualPromptOptions


class DualPrompt(PromptedStrategy):
    """A frozen transformer with `g_prompts` [2, blocks, L_g, D] (keys, values), and per task an E-Prompt and a key."""

    method = "dualprompt"
    place, in_attention = "in the attention", True
    roles = (("g_prompts", "prompts"), ("e_prompts.*", "prompts"), ("keys.*", "prompts"))
    options: DualPromptOptions

    def __init__(self, model: Network, stream_info: StreamInfo, options: DualPromptOptions | None = None) -> None:
        """Draw the G-Prompt; SpecError if the model has no place for prompts or too few blocks."""
        options = options if options is not None else DualPromptOptions()
        super().__init__(model, stream_info, options)
        self.shared = self.block_count("g_blocks", options.g_blocks, 2)
        self.own = self.block_count("e_blocks", options.e_blocks, 3)
        if self.shared + self.own > (depth := self.model.depth):
            raise SpecError(f"dualprompt has prompts in g_blocks = {self.shared} and then e_blocks = {self.own} "
                            f"blocks, and this model has {depth}; choose fewer, or a deeper model")
        self.g_prompts = self.parameter(2, self.shared, options.g_length, model.head.in_features)
        self.e_prompts, self.keys = nn.ParameterList(), nn.ParameterList()  # [2, blocks, L_e, D], [D]; one per task

    def grow(self, task: Task) -> None:
        """Add the task's E-Prompt and key."""
        width = self.model.head.in_features
        prompt = self.parameter(2, self.own, self.options.e_length, width)
        if self.options.start == "last" and len(self.e_prompts):
            prompt.data.copy_(self.e_prompts[-1].data)
        self.e_prompts.append(prompt)
        self.keys.append(self.parameter(width))

    def learning(self) -> Iterable[nn.Parameter]:
        """Return the G-Prompt, and the E-Prompt and key of the current task."""
        return self.g_prompts, self.e_prompts[-1], self.keys[-1]

    def similarity(self, query: Tensor) -> Tensor:
        """Return the cosine [N, tasks] between each sample's query [N, D] and each task's key.

        Keys of similar tasks differ by less than bfloat16 resolves, so the product is in float64, which autocast leaves
        as it is.
        """
        keys = F.normalize(torch.stack(list(self.keys)), dim=1)
        return (query.double() @ keys.double().T).float()

    def answer(self, x: Tensor, e_prompts: Tensor) -> Tensor:
        """Return logits [N, C] with the E-Prompts [N, 2, blocks, L_e, D] of each sample."""
        g_prompts = self.g_prompts.expand(len(x), -1, -1, -1, -1)
        prefixes = {i: Prefix(g_prompts[:, 0, i], g_prompts[:, 1, i]) for i in range(self.shared)}
        prefixes |= {self.shared + i: Prefix(e_prompts[:, 0, i], e_prompts[:, 1, i]) for i in range(self.own)}
        logits: Tensor = self.model.head(self.prefixed_features(x, prefixes))
        return logits

    def prompted_loss(self, batch: Batch) -> Tensor:
        """Return the cross-entropy with the task's own prompt plus the pull on its key."""
        logits = self.forward(batch.x, batch.task)
        pull = (1 - self.similarity(self.frozen_outputs_of(batch)["query"])[:, batch.task]).mean()
        return self.cross_entropy(logits, batch) + self.options.pull * pull

    def predict(self, x: Tensor, task: int | None = None) -> Prediction:
        """Return logits [N, C] and, if the task is not given, the task [N] with the most similar key.

        A task that is given, but has not begun, has the prompt of the task with the most similar key.
        """
        if not self.prompted:
            return Prediction(super().forward(x, task), None if task is not None else
                              torch.full((len(x),), -1, device=x.device))
        if task is not None and task < len(self.keys):
            return Prediction(self.answer(x, self.e_prompts[task].expand(len(x), -1, -1, -1, -1)))
        chosen = self.similarity(self.query(x)).argmax(1)
        logits = self.answer(x, torch.stack(list(self.e_prompts))[chosen])
        return Prediction(logits, None if task is not None else chosen)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Return logits [N, C], with prompts once they are in use."""
        return self.predict(x, task).logits
