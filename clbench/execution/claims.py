"""Share a run folder between processes: a process locks each trial while it runs it."""

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
    """The trials that this process has locked, and those that other processes have locked.

    Args:
        store: the run folder.
        known: the folder's records by key, as read at the start, to recognize records that are newer.
        on_record: called with each record that another process has written; its trial is locked during the call.
        note: called with messages for the user.
    """

    def __init__(self, store: Store, known: dict[str, Record], on_record: Callable[[Record], None],
                 note: Callable[[str], None]) -> None:
        """Start without any locks."""
        self.store = store
        self.known = known
        self.on_record = on_record
        self.note = note
        self.acquired_locks: dict[str, Lock | None] = {}
        self.elsewhere: dict[str, PlannedTrial] = {}
        self.has_locks = True

    def take(self, planned: PlannedTrial) -> bool:
        """Lock a trial and return whether to run it.

        It returns False if another process is running the trial or has finished it in the meantime.
        """
        key = planned.trial.key
        if key in self.acquired_locks:
            return True
        acquired = self._lock(key)
        if acquired is None and self.has_locks:
            self.elsewhere[key] = planned
            return False
        self.elsewhere.pop(key, None)
        self.acquired_locks[key] = acquired
        record = self.store.get(key)
        old_record = self.known.get(key)
        if record is None or (old_record and (record.status, record.provenance)
                              == (old_record.status, old_record.provenance)):
            return True  # this is the record to replace; another process may have changed its label
        self.on_record(record)
        self.release(key)
        return False

    @contextlib.contextmanager
    def hold_trial(self, key: str) -> Iterator[None]:
        """Lock a finished trial inside the block; wait first while another process has it locked."""
        acquired = self._lock(key)
        if acquired is None and self.has_locks:
            self.note(f"another clbench runs trial {key[:6]} in this folder; waiting")
        while acquired is None and self.has_locks:
            time.sleep(POLL_SECONDS)
            acquired = self._lock(key)
        try:
            yield
        finally:
            if acquired:
                acquired.release()

    def release(self, key: str) -> None:
        """Unlock a trial whose record has been written."""
        acquired = self.acquired_locks.pop(key, None)
        if acquired:
            acquired.release()

    def wait(self) -> list[PlannedTrial]:
        """Wait for other processes to finish their trials, then lock and return those that they left unfinished."""
        if self.elsewhere:
            self.note(f"{len(self.elsewhere)} of the trials are being run by another clbench in this folder; waiting")
        while self.elsewhere:
            if unfinished := [planned for planned in list(self.elsewhere.values()) if self.take(planned)]:
                return unfinished
            time.sleep(POLL_SECONDS)
        return []

    def close(self) -> None:
        """Unlock all trials."""
        for key in list(self.acquired_locks):
            self.release(key)

    def _lock(self, key: str) -> Lock | None:
        """Lock a trial; None if another process has it, or if the folder has no file locks (noted once)."""
        if not self.has_locks:
            return None
        try:
            return lock(self.store.locks / f"{key}.lock")
        except NoLocks:
            self.has_locks = False
            self.note(f"there are no file locks for {self.store.directory}: let one clbench run there at a time")
            return None
        except OSError as error:
            raise self.store.error(error) from None
