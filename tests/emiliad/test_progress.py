"""What people see of a long scan."""

from __future__ import annotations

import io

from rich.console import Console

from emiliad.commands.progress import _Lines, scan_progress
from emiliad.queue.enqueue import EnqueueReport, Progress


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120), text


def test_a_log_gets_a_line_every_few_seconds() -> None:
    """With the phase, the count, the rate and what is new; nothing of what is over at once."""
    out, text = console(terminal=False)
    now = 100.0
    say = _Lines(out, clock=lambda: now)
    for second in range(12):
        now = 100.0 + second
        say(Progress("lists the queue", 1000 * (1 + second), None, EnqueueReport()))
    now += 5
    say(Progress("makes tasks", 1000, 5000, EnqueueReport(created=700)))
    now += 5
    say(Progress("makes tasks", 2000, 5000, EnqueueReport(created=1700)))
    assert text.getvalue().splitlines() == [
        "lists the queue: 6,000 (1,000/s), 0 new",
        "lists the queue: 11,000 (1,000/s), 0 new",
        "makes tasks: 1,000 of 5,000 (0/s), 700 new",
        "makes tasks: 2,000 of 5,000 (200/s), 1,700 new",
    ]


def test_a_terminal_gets_a_bar() -> None:
    """Of the phase that the scan is in."""
    out, text = console(terminal=True)
    with scan_progress(out) as say:
        say(Progress("lists the raw files", 2000, None, EnqueueReport()))
        say(Progress("makes tasks", 1000, 5000, EnqueueReport(created=700)))
    assert "lists the raw files" in text.getvalue() or "makes tasks, 700 new" in text.getvalue()
    assert "1,000" in text.getvalue()
