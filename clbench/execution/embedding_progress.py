"""The progress of `clbench embed`: a live bar on a terminal, a plain line at intervals elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from clbench.execution.progress import clock

EVERY = 15.0  # seconds between plain lines


class EmbeddingProgress:
    """Shows the number of finished samples, the elapsed and the remaining time. A context manager."""

    def __init__(self, console: Console, total: int) -> None:
        """Begin with nothing done."""
        self.console, self.total = console, total
        self.began = self.said = time.monotonic()
        self.bars = Bars(TextColumn("features", markup=False), BarColumn(bar_width=24),
                         TextColumn("{task.fields[state]}", markup=False), console=console, transient=True)
        self.bar = self.bars.add_task("", total=total, state="")

    def __enter__(self) -> EmbeddingProgress:
        """Start drawing, on a terminal."""
        if self.console.is_terminal:
            self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        """Leave the terminal as it was."""
        if self.console.is_terminal:
            self.bars.stop()

    def __call__(self, done: int, reused: int) -> None:
        """Show that `done` samples are finished, of which `reused` come from an earlier call."""
        now = time.monotonic()
        state = self.state(done, reused, now - self.began)
        if self.console.is_terminal:
            self.bars.update(self.bar, completed=done, state=state)
        elif now - self.said >= EVERY:
            self.said = now
            self.console.print(state, soft_wrap=True, markup=False)

    def state(self, done: int, reused: int, elapsed: float) -> str:
        """Return the progress as text; the remaining time is estimated from the samples that were not reused."""
        left = clock(elapsed * (self.total - done) / (done - reused)) if done > reused else "?"
        return (f"{done:,}/{self.total:,} samples, {clock(elapsed)} elapsed"
                + (f", about {left} left" if done < self.total else ""))
