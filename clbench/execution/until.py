"""Run an experiment once, or round by round until its comparisons are decided (`--until decided`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from clbench.core.compat import usable_cores
from clbench.execution import run
from clbench.execution.deciding import State, next_round, rule_of, states
from clbench.execution.workers.plan import Listener, Relay
from clbench.experiment.trial import PlannedTrial
from clbench.experiment.until import UntilDecided, question, sequence
from clbench.results.records import Record

Show = Callable[[run.Experiment], AbstractContextManager[Listener]]  # makes the listener of a round


class Round(Relay):
    """Forwards the events of a round to a listener, without repeating the notes of earlier rounds."""

    def __init__(self, listener: Listener, rule: UntilDecided, printed: set[str]) -> None:
        """Wrap the listener; `printed` contains the notes that were forwarded so far, and all rounds share it."""
        super().__init__(listener)
        self.rule, self.printed = rule, printed
        self.first = not printed

    def run_started(self, planned: Sequence[PlannedTrial], todo: Sequence[PlannedTrial]) -> None:
        """Forward the event, and print the rule."""
        self.listener.run_started(planned, todo)
        self.note(f"then until decided: {question(self.rule)}, by a look after each seed from {self.rule.first} to at "
                  f"most {self.rule.most}")

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0, again: bool = False) -> None:
        """Forward the event, with the information whether this is a later round."""
        super().ready(device, workers, threads, nodes, again=not self.first)

    def note(self, text: str) -> None:
        """Forward a new note."""
        if text not in self.printed:
            self.printed.add(text)
            super().note(text)


def carry_out(experiment: run.Experiment, show: Show, command: str) -> list[Record]:
    """Run the missing trials of an experiment, add seeds according to its rule, and return all its records.

    Args:
        experiment: the experiment from `run.prepare`.
        show: makes the listener of each round.
        command: the command that the user typed, stored in the records.

    Raises:
        ClbenchError: as `run.execute`.
    """
    if not experiment.most:
        with show(experiment) as listener:
            return run.execute(experiment, listener, command=command)
    rule = rule_of(experiment.spec, [p.label for p in experiment.planned])
    seeds = sequence(experiment.spec.seeds, rule.most)
    printed: set[str] = set()
    while True:
        with show(experiment) as listener:
            run.execute(experiment, Round(listener, rule, printed), command=command, later=bool(printed))
        experiment.failed_keys |= {p.trial.key for p in experiment.missing}
        settings = {p.trial.environment for p in experiment.planned}
        setting_states = states([r for r in experiment.study() if r.trial.environment in settings], rule)
        added = next_round(experiment.planned, setting_states, rule, seeds, places(experiment))
        with show(experiment) as listener:
            listener = Round(listener, rule, printed)
            for line in lines(setting_states, experiment, bool(added)):
                listener.note(line)
        if not added:
            return experiment.results()
        experiment.planned += added


def places(experiment: run.Experiment) -> int:
    """Return the number of trials that run at the same time: one, or a stack, for each worker."""
    settings = experiment.spec.execution
    workers = settings.workers if settings.workers is not None else (
        usable_cores() if experiment.spec.device in ("auto", "cpu") else 1)
    return max(1, workers) * (settings.stack or 1)


def lines(setting_states: Sequence[State], experiment: run.Experiment, going: bool) -> list[str]:
    """Return the messages after a round on the decided and the inconclusive methods of the experiment.

    Args:
        setting_states: the state of each setting, which may have further methods of the run folder.
        experiment: the experiment.
        going: whether there is another round.
    """
    messages = []
    several = len(setting_states) > 1
    for state in setting_states:
        planned = [p for p in experiment.planned if p.trial.scenario == state.scenario]
        labels = {p.trial.method_config: p.label for p in planned}
        counts = Counter(p.trial.method_config for p in planned)
        prefix = f"{state.scenario}: " if several else ""
        for method, verdict in state.decided.items():
            if counts[method]:
                messages.append(f"{prefix}decided after {counts[method]} seeds: {labels[method]} is {verdict} "
                                f"({state.question})")
        if open_methods := [method for method in state.open if counts[method]]:
            fewest = min(counts[method] for method in open_methods)
            end = "; seeds are added" if going else ", the most that were to be added"
            messages.append(f"{prefix}open after {fewest} seeds: {', '.join(labels[m] for m in open_methods)} "
                            f"({state.question}){end}")
    return messages
