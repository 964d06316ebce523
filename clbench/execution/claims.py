"""Which trials this process runs where several share a run folder: each is locked for as long as it is run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from clbench.core.files import Lock, NoLocks, lock
from clbench.experiment.trial import PlannedTrial
from clbench.results.records import Record
from clbench.results.store import Store

POLL_SECONDS = 0.5  # between looks at what other processes are still running


class TrialClaims:
    """The trials that are being run here, and those that were found taken.

    Args:
        store: the run folder.
        known: its records by key, as they were read; what is written later is another process's, or our own.
        found: hears of a record that another process has written, while its trial is locked.
        note: hears of something the user should know.
    """

    def __init__(self, store: Store, known: dict[str, Record], found: Callable[[Record], None],
                 note: Callable[[str], None]) -> None:
        """Hold nothing yet."""
        self.store = store
        self.known = known
        self.found = found
        self.note = note
        self.held: dict[str, Lock | None] = {}
        self.elsewhere: dict[str, PlannedTrial] = {}
        self.locks = True

    def take(self, planned: PlannedTrial) -> bool:
        """Return whether the trial is to be run here: no other process runs it, or has since the folder was read."""
        key = planned.trial.key
        if key in self.held:
            return True
        taken = self._lock(key)
        if taken is None and self.locks:
            self.elsewhere[key] = planned
            return False
        self.elsewhere.pop(key, None)
        self.held[key] = taken
        record = self.store.get(key)
        if record is None or record == self.known.get(key):
            return True
        self.found(record)
        self.release(key)
        return False

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Lock a trial whose record is there, for a moment: others that have it locked only look at the record too."""
        while (taken := self._lock(key)) is None and self.locks:
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            if taken:
                taken.release()

    def release(self, key: str) -> None:
        """Let go of a trial whose record is written."""
        taken = self.held.pop(key, None)
        if taken:
            taken.release()

    def wait(self) -> list[PlannedTrial]:
        """Wait until other processes are done with the trials they took, and return those they left undone.

        These are held from here on.
        """
        if self.elsewhere:
            self.note(f"{len(self.elsewhere)} of the trials are being run by another clbench in this folder; waiting")
        while self.elsewhere:
            if left := [planned for planned in list(self.elsewhere.values()) if self.take(planned)]:
                return left
            time.sleep(POLL_SECONDS)
        return []

    def close(self) -> None:
        """Let go of everything."""
        for key in list(self.held):
            self.release(key)

    def _lock(self, key: str) -> Lock | None:
        """Lock a trial; None where another process has, or there are no locks here, which is said once."""
        if not self.locks:
            return None
        try:
            return lock(self.store.locks / f"{key}.lock")
        except NoLocks:
            self.locks = False
            self.note(f"there are no file locks for {self.store.directory}: let one clbench run there at a time")
            return None
        except OSError as error:
            raise self.store.error(error) from None
