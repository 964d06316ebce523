"""A replay method that gives a role to the parameters it adds."""

from torch import nn

from clbench.strategy.replay import ReplayMemory


class WithTeacher(ReplayMemory):
    roles = (("teacher.*", "teacher"),)

    def __init__(self, model, stream_info, options):
        super().__init__(model, stream_info, options, capacity=10)
        self.teacher = nn.Linear(3, 2)

    def after_task(self, task):
        self.offer(task.train)
