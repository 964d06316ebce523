"""What is kept of trials that are over, `--keep`: their models, and what they would learn on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clbench.core.registry import Registry
from clbench.experiment.execution_settings import Keep
from clbench.results.records import Provenance
from clbench.results.store import MODEL, STATE
from clbench.training.stacking import Engine
from clbench.training.trials import checkpoint
from clbench.training.trials.kept import write_model
from clbench.training.trials.resume import Checkpoints, moments_of
from clbench.training.trials.state import TrialState


@dataclass(frozen=True)
class Keeper:
    """Keeps models, and states where these are asked for, in `folder`, which has a folder for each trial's key."""

    folder: Path
    states: bool
    origin: Provenance  # where and with what the trials ran
    registry: Registry

    @classmethod
    def wanted(cls, keep: Keep, folder: Path | None, origin: Provenance, registry: Registry) -> Keeper | None:
        """Return one where something is to be kept and there is a folder for it."""
        return None if keep == "nothing" or folder is None else cls(folder, keep == "state", origin, registry)

    def keep(self, members: Sequence[TrialState], engine: Engine | None) -> None:
        """Write the files of trials that have learned all their tasks; `engine` took their last step.

        A disk that is full costs no record, which notes it.
        """
        for member, moments in zip(members, moments_of(members, engine), strict=True):
            folder = self.folder / member.trial.key
            try:
                write_model(folder / MODEL, member, self.registry)
                if self.states:
                    header = Checkpoints(folder, self.origin).header(member).model_copy(
                        update={"learned": len(member.stream.tasks)})  # of a trial that continues another, all
                    checkpoint.write(folder / STATE, header, member.strategy, moments)
            except OSError as error:
                member.add_note(f"no model could be kept: {error.strerror or error}")
