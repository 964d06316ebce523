"""In which order trials run, and what is checked before the first of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clbench.core.errors import ClbenchError, DataError
from clbench.execution.workers.plan import Listener
from clbench.experiment.trial import PlannedTrial

ACCELERATOR_STACK = 32  # trials that are tried together; a stack that does not fit in memory is halved


Kind = tuple[tuple[str, ...], str]


class TrialQueue:
    """The trials that wait, setting by setting (streams are large); in each the longest go first, once known.

    So methods are all met early, and no long trial is left to run alone at the end.
    """

    def __init__(self, todo: Sequence[PlannedTrial]) -> None:
        """Let them wait in the order of the plan."""
        # Positions in the plan and trials, by setting and kind: what these are takes long to write out.
        self.left: dict[tuple[str, ...], dict[Kind, list[tuple[int, PlannedTrial]]]] = {}
        for position, planned in enumerate(todo):
            kinds = self.left.setdefault(planned.trial.setting, {})
            kinds.setdefault(self._kind(planned), []).append((position, planned))
        self.seconds: dict[Kind, float] = {}

    def take(self, stack: int | None, device: str) -> list[PlannedTrial]:
        """Remove the next trial and, up to the size of a stack, others of its setting that may train with it.

        Without a size trials run one by one on a CPU and together on an accelerator.

        These are the other seeds of its method, then those of methods that differ in `Scalar` options only.
        """
        setting, here = next(iter(self.left.items()))
        kind = max(here, key=lambda k: (self.seconds.get(k, math.inf), -here[k][0][0]))  # the earliest of several
        size = stack or (1 if device == "cpu" else ACCELERATOR_STACK)
        family = here[kind][0][1].family
        kin = [k for k in here if k != kind and family and here[k][0][1].family == family]
        group: list[PlannedTrial] = []
        for k in (kind, *kin):
            count = size - len(group)
            group += [planned for _, planned in here[k][:count]]
            del here[k][:count]
            if not here[k]:
                del here[k]
        if not here:
            del self.left[setting]
        return group

    def took(self, group: Sequence[PlannedTrial], seconds: float) -> None:
        """Hear how long trials took."""
        for planned in group:
            self.seconds[self._kind(planned)] = seconds / len(group)

    def _kind(self, planned: PlannedTrial) -> Kind:
        """Return what trials have in common that differ in their seed only."""
        return planned.trial.setting, str(planned.trial.method)


class PreflightChecks:
    """What is to be found out before any trial starts: that each method can be built on each setting's stream."""

    def __init__(self, todo: Sequence[PlannedTrial], listener: Listener) -> None:
        """Take the first trial of every setting and method."""
        first: dict[tuple[object, ...], PlannedTrial] = {}
        for planned in todo:
            first.setdefault((planned.trial.setting, str(planned.trial.method)), planned)
        self.left = list(first.values())
        self.listener = listener
        self.problems: dict[str, ClbenchError] = {}
        self.notes: set[str] = set()

    def next(self) -> PlannedTrial | None:
        """Return the trial to prepare now; None when all are.

        Raises:
            ClbenchError: all have been looked at and some cannot run; a line for each mistake.
        """
        if self.left:
            return self.left.pop(0)
        if self.problems:
            raise type(next(iter(self.problems.values())))("\n".join(self.problems))
        return None

    def passed(self, notes: Sequence[str]) -> None:
        """Hear that a trial can run; what there is to note is passed on once."""
        for note in notes:
            if note not in self.notes:
                self.notes.add(note)
                self.listener.note(note)

    def refused(self, planned: PlannedTrial, error: ClbenchError) -> None:
        """Hear that a trial cannot run. Without its stream, neither can the others of its setting."""
        self.problems[str(error)] = error
        if isinstance(error, DataError):
            self.left = [p for p in self.left if p.trial.setting != planned.trial.setting]
