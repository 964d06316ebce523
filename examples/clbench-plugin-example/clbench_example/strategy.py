"""mean-IMM: after each task, replace the weights by the mean of the weights after all tasks so far.

Lee et al. 2017 (arXiv 1703.08475), with equal weights for the tasks and with weight-transfer: each task starts from the
mean so far.
"""

import torch

from clbench import Strategy, Task


class MeanIMM(Strategy):
    """Fine-tune on each task and average the weights over tasks. The mean is stored in buffers."""

    roles = (("mean_*", "mean"),)

    def after_task(self, task: Task) -> None:
        """Set the weights to the mean: mean_t = mean_(t-1) + (theta_t - mean_(t-1)) / t."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                kept = "mean_" + name.replace(".", "_")
                if task.index:
                    mean = getattr(self, kept)
                    parameter.copy_(mean + (parameter - mean) / (task.index + 1))
                self.register_buffer(kept, parameter.clone())
