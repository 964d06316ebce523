"""What is kept of trials that are over, `--keep`: their models, and what they would learn on with."""

from __future__ import annotations

from pathlib import Path

from clbench.core.registry import Registry
from clbench.experiment.execution_settings import Keep
from clbench.persistence import checkpoint
from clbench.persistence.kept import write_model
from clbench.persistence.resume import CheckpointCallback, moments_of
from clbench.results.records import Provenance
from clbench.results.store import MODEL, STATE
from clbench.training.callbacks.interface import Callback, Training


class SaveCallback(Callback):
    """Saves models, and states where these are asked for, once all tasks are learned.

    Args:
        folder: has a folder for each trial by its key.
        states: whether to save states too.
        origin: where and with what the trials ran.
        registry: what is installed.
    """

    def __init__(self, folder: Path, states: bool, origin: Provenance, registry: Registry) -> None:
        self.folder = folder
        self.states = states
        self.origin = origin
        self.registry = registry

    @classmethod
    def wanted(cls, keep: Keep, folder: Path | None, origin: Provenance, registry: Registry) -> SaveCallback | None:
        """Return one where something is to be kept and there is a folder for it."""
        return None if keep == "nothing" or folder is None else cls(folder, keep == "state", origin, registry)

    def on_end(self, training: Training) -> None:
        """Write the files. A disk that is full costs no record, which notes it."""
        for replica, moments in zip(training.replicas, moments_of(training), strict=True):
            folder = self.folder / replica.trial.key
            try:
                write_model(folder / MODEL, replica, self.registry)
                if self.states:
                    header = CheckpointCallback(folder, self.origin).header(replica).model_copy(
                        update={"learned": len(replica.stream.tasks)})  # of a trial that continues another, all
                    checkpoint.write(folder / STATE, header, replica.strategy, moments)
            except OSError as error:
                replica.add_note(f"no model could be kept: {error.strerror or error}")
