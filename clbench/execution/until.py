"""An experiment carried out: once, or round by round until its question is decided (`--until decided`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from clbench.execution import run
from clbench.execution.deciding import State, next_round, rule_of, states
from clbench.execution.workers.plan import Listener, Relay
from clbench.experiment.trial import PlannedTrial
from clbench.experiment.until import UntilDecided, question, sequence
from clbench.results.records import Record

Show = Callable[[run.Experiment], AbstractContextManager[Listener]]  # makes the listener of a round


class Round(Relay):
    """Tells a listener what is new in a round: the rule in the first, and no note that has been told before."""

    def __init__(self, listener: Listener, rule: UntilDecided, told: set[str]) -> None:
        """Wrap the listener; `told` is shared by all rounds."""
        super().__init__(listener)
        self.rule, self.told = rule, told
        self.first = not told

    def begun(self, planned: Sequence[PlannedTrial], todo: Sequence[PlannedTrial]) -> None:
        """Forward the event, and say how it goes on."""
        self.listener.begun(planned, todo)
        self.note(f"then until decided: {question(self.rule)}, by a look after each seed from {self.rule.first} to at "
                  f"most {self.rule.most}")

    def ready(self, device: str, workers: int, threads: int | None, nodes: int = 0) -> None:
        """Forward the first."""
        if self.first:
            super().ready(device, workers, threads, nodes)

    def note(self, text: str) -> None:
        """Forward what is new."""
        if text not in self.told:
            self.told.add(text)
            super().note(text)


def carry_out(ready: run.Experiment, show: Show, command: str) -> list[Record]:
    """Run what is missing of an experiment, and add seeds where its rule asks for them; return all its records.

    Args:
        ready: from `run.prepare`.
        show: makes the listener of each round.
        command: what the user typed, kept in the records.

    Raises:
        ClbenchError: as `run.execute`.
    """
    if not ready.most:
        with show(ready) as listener:
            return run.execute(ready, listener, command=command)
    rule = rule_of(ready.spec, [p.label for p in ready.planned])
    seeds = sequence(ready.spec.seeds, rule.most)
    told: set[str] = set()
    while True:
        with show(ready) as listener:
            run.execute(ready, Round(listener, rule, told), command=command, later=bool(told))
        ready.given_up |= {p.trial.key for p in ready.missing}
        settings = {p.trial.setting for p in ready.planned}
        found = states([r for r in ready.study() if r.trial.setting in settings], rule)
        added = next_round(ready.planned, found, rule, seeds, places(ready))
        with show(ready) as listener:
            listener = Round(listener, rule, told)
            for line in lines(found, ready, bool(added)):
                listener.note(line)
        if not added:
            return ready.results()
        ready.planned += added


def places(ready: run.Experiment) -> int:
    """Return how many trials are run at once: of each worker one, or a stack."""
    settings = ready.spec.execution
    workers = settings.workers if settings.workers is not None else (
        run.usable_cores() if ready.spec.device in ("auto", "cpu") else 1)
    return max(1, workers) * (settings.stack or 1)


def lines(found: Sequence[State], ready: run.Experiment, going: bool) -> list[str]:
    """Return what is said after a round: what it has decided, and what is open.

    Args:
        found: by setting.
        ready: the experiment.
        going: whether there is another round.
    """
    said = []
    several = len(found) > 1
    for state in found:
        counts = {label: sum(p.label == label and p.trial.scenario == state.scenario for p in ready.planned)
                  for label in (*state.decided, *state.open)}
        where = f"{state.scenario}: " if several else ""
        for label, verdict in state.decided.items():
            said.append(f"{where}decided after {counts[label]} seeds: {label} is {verdict} ({state.question})")
        if state.open:
            fewest = min(counts[label] for label in state.open)
            end = "; seeds are added" if going else ", the most that were to be added"
            said.append(f"{where}open after {fewest} seeds: {', '.join(state.open)} "
                        f"({state.question}){end}")
    return said
