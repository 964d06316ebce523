"""mean-IMM: after each task the weights become the mean of those that all tasks led to.

Lee et al. 2017 (arXiv 1703.08475), equal weights for the tasks and weight-transfer: a task starts from the mean so far.
"""

import torch

from clbench import Strategy, Task


class MeanIMM(Strategy):
    """Fine-tuning whose weights are averaged over the tasks; the mean is kept in buffers."""

    roles = (("mean_*", "mean"),)

    def after_task(self, task: Task) -> None:
        """Merge: mean_t = mean_(t-1) + (theta_t - mean_(t-1)) / t."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                kept = "mean_" + name.replace(".", "_")
                if task.index:
                    mean = getattr(self, kept)
                    parameter.copy_(mean + (parameter - mean) / (task.index + 1))
                self.register_buffer(kept, parameter.clone())
