"""Ctrl-C and SIGTERM: the first signal lets pending writes finish, the second stops at once.

Both raise KeyboardInterrupt. Within `held` the first is deferred until the block ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _State:
    """The signals received so far; a single instance, because signals are per process."""

    def __init__(self) -> None:
        self.heard = 0
        self.holding = 0
        self.wake: Callable[[], object] = lambda: None


_state = _State()


@contextmanager
def caught() -> Iterator[None]:
    """Handle both signals within the block, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _hear) for number in (signal.SIGINT, signal.SIGTERM)}
    _state.heard = 0
    try:
        yield
    finally:
        _state.heard = 0  # otherwise an old signal would interrupt a later `held` block
        for number, handler in before.items():
            signal.signal(number, handler)


def _hear(number: int, frame: Any) -> None:
    _state.heard += 1
    if _state.holding and _state.heard == 1:
        _state.wake()
    else:
        raise KeyboardInterrupt


@contextmanager
def kept() -> Iterator[None]:
    """Restore the signal handlers after the block, in case third-party code replaces them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def held(wake: Callable[[], object] | None = None) -> Iterator[None]:
    """Defer a first signal until the outermost such block ends; `wake` is called to end a wait inside it."""
    outer = _state.wake
    if wake is not None:
        _state.wake = wake
    _state.holding += 1
    try:
        yield
    finally:
        _state.holding -= 1
        _state.wake = outer
    if _state.heard == 1 and not _state.holding:
        raise KeyboardInterrupt
