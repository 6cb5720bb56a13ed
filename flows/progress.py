"""What a long command shows meanwhile: bars on a terminal, nothing elsewhere.

The stages report to `current()`. It is a context variable, not a parameter, because a Prefect
flow's parameters must be data; on a worker nobody listens and the reports go nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Progress:
    """Listens and shows nothing."""

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """Begin a stage of `total` crystals (None: not known), `done` of them already."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count more crystals of the stage; `note` is shown beside its bar."""

    def reach(self, done: int, *, earlier: bool = False) -> None:
        """Tell how many crystals of the stage are done; `earlier`: by a run before."""

    def say(self, text: str) -> None:
        """Tell something that stays on the screen."""


_CURRENT: ContextVar[Progress | None] = ContextVar("progress", default=None)


def current() -> Progress:
    """Return who listens now."""
    return _CURRENT.get() or Progress()


class TerminalProgress(Progress):
    """Bars on the standard error stream; lines only where that is no terminal."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self._console = console
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._lengthless = False
        self._from = time.monotonic(), 0  # when this run began to count, and from where

    def stage(self, name: str, total: int | None, done: int = 0) -> None:
        """Finish the bar before and add one."""
        self.close_bar()
        self._lengthless = total is None
        self._from = time.monotonic(), done
        self._task = self._bars.add_task(name, total=total, completed=done, note="")

    def advance(self, count: int = 1, note: str = "") -> None:
        """Move the newest bar on."""
        if self._task is not None:
            self._bars.advance(self._task, count)
            if note:
                self._bars.update(self._task, note=note)

    def reach(self, done: int, *, earlier: bool = False) -> None:
        """Move the newest bar, and tell the rate beside it."""
        if earlier:
            self._from = time.monotonic(), done
        if self._task is not None:
            began, already = self._from
            rate = (done - already) / max(time.monotonic() - began, 1e-3)
            note = f"{rate:.1f} crystals/s" if rate else ""
            self._bars.update(self._task, completed=done, note=note)

    def say(self, text: str) -> None:
        """Print above the bars."""
        self._console.print(text, markup=False, highlight=False)

    def close_bar(self) -> None:
        """Show the newest bar as done, or take it away if its length was never known."""
        if self._task is None:
            return
        if self._lengthless:
            self._bars.remove_task(self._task)
        else:
            self._bars.stop_task(self._task)
        self._task = None

    @contextmanager
    def running(self) -> Iterator[TerminalProgress]:
        """Draw, and listen to the stages, within the block."""
        token = _CURRENT.set(self)
        try:
            with self._bars:
                yield self
                self.close_bar()
        finally:
            _CURRENT.reset(token)
