"""How far `clbench embed` has come: a live bar on a terminal, a plain line every so often elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from clbench.execution.progress import clock

EVERY = 15.0  # seconds between plain lines


class EmbeddingProgress:
    """Shows how many of `total` samples are done, the time and what is left of it. A context manager."""

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

    def __call__(self, done: int, found: int) -> None:
        """Show that so many samples are done, of which so many were found from before."""
        now = time.monotonic()
        state = self.state(done, found, now - self.began)
        if self.console.is_terminal:
            self.bars.update(self.bar, completed=done, state=state)
        elif now - self.said >= EVERY:
            self.said = now
            self.console.print(state, soft_wrap=True, markup=False)

    def state(self, done: int, found: int, elapsed: float) -> str:
        """Return it as text; time is left by the pace of what was not found from before."""
        left = clock(elapsed * (self.total - done) / (done - found)) if done > found else "?"
        return (f"{done:,}/{self.total:,} samples, {clock(elapsed)} elapsed"
                + (f", about {left} left" if done < self.total else ""))
