"""Sharing a run folder between processes: a process locks each trial while it runs it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from clbench.core.files import Lock, NoLocks, lock
from clbench.experiment.trial import PlannedTrial
from clbench.results.records import Record
from clbench.results.store import Store

POLL_SECONDS = 0.5  # between checks of trials that other processes are running


class TrialClaims:
    """The trials that this process has locked, and those that other processes have.

    Args:
        store: the run folder.
        known: its records by key, as read at the start; later records come from this process or another.
        found: called with each record that another process has written, while its trial is locked.
        note: called with messages for the user.
    """

    def __init__(self, store: Store, known: dict[str, Record], found: Callable[[Record], None],
                 note: Callable[[str], None]) -> None:
        """Start without any locks."""
        self.store = store
        self.known = known
        self.found = found
        self.note = note
        self.held: dict[str, Lock | None] = {}
        self.elsewhere: dict[str, PlannedTrial] = {}
        self.locks = True

    def take(self, planned: PlannedTrial) -> bool:
        """Lock a trial and return whether to run it: no other process is running it or has finished it meanwhile."""
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
        known = self.known.get(key)
        if record is None or (known and (record.status, record.provenance) == (known.status, known.provenance)):
            return True  # the record that was to be replaced, which somebody may have labelled anew
        self.found(record)
        self.release(key)
        return False

    @contextlib.contextmanager
    def alone(self, key: str) -> Iterator[None]:
        """Lock a finished trial briefly, waiting if needed; other processes also lock it only to read its record."""
        while (taken := self._lock(key)) is None and self.locks:
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            if taken:
                taken.release()

    def release(self, key: str) -> None:
        """Unlock a trial whose record has been written."""
        taken = self.held.pop(key, None)
        if taken:
            taken.release()

    def wait(self) -> list[PlannedTrial]:
        """Wait for other processes to finish their trials, and return those that they left unfinished.

        This process has then locked the trials that are returned.
        """
        if self.elsewhere:
            self.note(f"{len(self.elsewhere)} of the trials are being run by another clbench in this folder; waiting")
        while self.elsewhere:
            if left := [planned for planned in list(self.elsewhere.values()) if self.take(planned)]:
                return left
            time.sleep(POLL_SECONDS)
        return []

    def close(self) -> None:
        """Unlock all trials."""
        for key in list(self.held):
            self.release(key)

    def _lock(self, key: str) -> Lock | None:
        """Lock a trial; None if another process has it, or if the folder has no file locks (noted once)."""
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
