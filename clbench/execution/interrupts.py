"""Ctrl-C and SIGTERM: the first signal lets pending writes finish, the second stops immediately.

Both raise KeyboardInterrupt. Inside `defer_signals` the first is deferred until the block ends.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _State:
    """The number of received signals and the state of deferral; a single instance, because signals are per process."""

    def __init__(self) -> None:
        self.received = 0
        self.deferring = 0
        self.wake: Callable[[], object] = lambda: None


_state = _State()


@contextmanager
def handle_signals() -> Iterator[None]:
    """Install handlers of both signals for the block, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old_handlers = {number: signal.signal(number, _on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    _state.received = 0
    try:
        yield
    finally:
        _state.received = 0  # otherwise an old signal would interrupt a later `defer_signals` block
        for number, handler in old_handlers.items():
            signal.signal(number, handler)


def _on_signal(number: int, frame: Any) -> None:
    _state.received += 1
    if _state.deferring and _state.received == 1:
        _state.wake()
    else:
        raise KeyboardInterrupt


@contextmanager
def preserve_handlers() -> Iterator[None]:
    """Restore the signal handlers after the block, because third-party code may replace them."""
    old_handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in old_handlers.items():
                signal.signal(number, handler)


@contextmanager
def defer_signals(wake: Callable[[], object] | None = None) -> Iterator[None]:
    """Defer the first signal until the outermost of these blocks ends.

    The signal calls `wake`, which should end a wait inside the block.
    """
    outer = _state.wake
    if wake is not None:
        _state.wake = wake
    _state.deferring += 1
    try:
        yield
    finally:
        _state.deferring -= 1
        _state.wake = outer
    if _state.received == 1 and not _state.deferring:
        raise KeyboardInterrupt
