"""The errors that clbench raises deliberately: each is one line that says what is wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

NEAR = 0.15  # a name is suggested if its similarity is less than this below the similarity of the best match
SHOWN = 5  # names that a note or an error lists before it counts the others


class ClbenchError(Exception):
    """Base of errors that the user can fix; the command line prints one line and exits with code 2."""


class SpecError(ClbenchError):
    """An experiment that cannot run as written: unknown names, options out of bounds, wrong types."""


class OptionError(SpecError):
    """A method's option that does not fit the benchmark; `fitting` is a value that fits, as in `infer=gaussian`."""

    def __init__(self, problem: str, fitting: str, alternative: str = "") -> None:
        """Name the problem, the value that fits, and another remedy, as in `choose --scenario task`."""
        self.problem, self.fitting, self.alternative = problem, fitting, f", or {alternative}" if alternative else ""
        super().__init__(f"{problem}; write {fitting}{self.alternative}")

    def of_method(self, name: str) -> SpecError:
        """Return the error of a method, with the option as the user writes it: `lora:infer=gaussian`."""
        return SpecError(f"method {name!r}: {self.problem}; write {name}:{self.fitting}{self.alternative}")


class PluginError(ClbenchError):
    """A plugin that is missing, broken or violates the interface."""


class DataError(ClbenchError):
    """A benchmark whose data are missing, empty or unsuitable for the scenario."""


class MissingDataError(DataError):
    """A benchmark whose data are not on this machine."""


class FewClassesError(DataError):
    """A benchmark that has too few classes for two tasks of two classes, if its options name no number of tasks."""


class StoreError(ClbenchError):
    """A run folder or a record that cannot be read or written."""


class WriteError(StoreError):
    """A file of a trial that cannot be written; the same trial may succeed later, as when a disk is full."""


class StaleError(ClbenchError):
    """Results in a run folder that come from other code or data than the present ones."""


class DivergedError(Exception):
    """The loss became NaN or infinite; the harness turns it into a record with status `diverged`."""


def message_of(error: BaseException, length: int | None = None) -> str:
    """Return the message of an error in one line, cut to `length` characters."""
    return " ".join(str(error).split())[:length]


def typed_message(error: BaseException, length: int | None = None) -> str:
    """Return the type and the message of an error in one line."""
    return f"{type(error).__name__}: {message_of(error, length)}"


def unknown(kind: str, name: str, known: Iterable[str], listing: str) -> str:
    """Return the message for a name that does not exist: similar names, then the command that lists all names.

    >>> unknown("method", "loraa", ["lora", "ewc"], "clbench methods")
    "no method 'loraa'; did you mean 'lora'? (clbench methods lists all)"
    """
    return f"no {kind} {name!r}{guess(name, known)} ({listing} lists all)"


def guess(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'lora'?` with similar names; empty if there are none."""
    matches = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.6)
    ratios = [difflib.SequenceMatcher(None, match, name).ratio() for match in matches]
    matches = [match for match, ratio in zip(matches, ratios, strict=True) if ratio > ratios[0] - NEAR]
    return f"; did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def list_names(names: Iterable[str], most: int = SHOWN) -> str:
    """Return names as text: the first `most`, and the number of the others.

    >>> list_names(["ewc", "er"]), list_names(["ewc", "er", "lora", "pnn"], 2)
    ('ewc, er', 'ewc, er and 2 more')
    """
    all_names = list(names)
    return ", ".join(all_names[:most]) + (f" and {len(all_names) - most} more" if len(all_names) > most else "")
