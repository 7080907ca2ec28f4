"""One way to answer: a table for people, JSON for programs, progress on stderr."""

import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

_WIDE = 240


class Format(StrEnum):
    """How a command answers."""

    TEXT = "text"
    JSON = "json"


def emit(form: Format, content: Any, *shown: Table | str) -> None:  # noqa: ANN401 - any JSON value
    """Print `content` as JSON, or what is `shown` of it to people."""
    if form is Format.JSON:
        sys.stdout.write(json.dumps(content, indent=2) + "\n")
        return
    show(*shown)


def show(*shown: Table | str) -> None:
    """Print text and tables; where nobody's terminal limits it, a table is as wide as it needs to be."""
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else _WIDE)
    for piece in shown:
        console.print(piece, markup=False)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return an aligned table; a column whose name ends in `>` is right-aligned."""
    result = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in columns:
        result.add_column(name.removesuffix(">"), justify="right" if name.endswith(">") else "left", no_wrap=True)
    for row in rows:
        result.add_row(*row)
    return result


@dataclass
class Bars(AbstractContextManager["Bars"]):
    """Progress on stderr: a bar a stage on a terminal, a line a quarter of a stage elsewhere."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    _tasks: dict[str, TaskID] = field(default_factory=dict)
    _quarters: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def __call__(self, stage: str, done: float, total: float, detail: str = "") -> None:
        """Show that `done` of `total` steps of `stage` are finished."""
        if not self.console.is_terminal:
            quarter = int(4 * done / total)
            if quarter > self._quarters.get(stage, 0):
                self._quarters[stage] = quarter
                self.console.print(f"{stage:16} {25 * quarter:3}%  {detail}", markup=False)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total, detail=detail)
        self._progress.update(self._tasks[stage], completed=done, total=total, detail=detail)
