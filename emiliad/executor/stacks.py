"""Makes what a dying or overdue child writes readable: the stack that matters at the very end."""

from __future__ import annotations

import re
from collections.abc import Iterable

PLAIN_LINES = 50  # of what else it wrote

_HEAD = re.compile(r"((?:Current thread|Thread) 0x[0-9a-f]+.*)\(most recent call first\):$")
_NOISE = "Extension modules: "  # after a crash, a line with the name of every native module


def readable(lines: Iterable[str]) -> str:
    """The last PLAIN_LINES lines, then the stack of each thread that faulthandler wrote.

    faulthandler begins a stack with the innermost call; here it ends with it, as tracebacks do,
    and the thread that crashed or got the signal comes last. For whoever cuts the text keeps its
    end (a dead letter has room for a thousand characters).
    """
    plain: list[str] = []
    stacks: list[list[str]] = []
    inside = False
    for line in lines:
        head = _HEAD.match(line)
        if head:
            stacks.append([f"{head[1]}(most recent call last):"])
            inside = True
        elif inside and line.startswith("  "):
            stacks[-1].insert(1, line)
        elif not line.startswith(_NOISE):
            plain.append(line)
            inside = False
    stacks.sort(key=lambda stack: stack[0].startswith("Current"))
    return "\n".join([*plain[-PLAIN_LINES:], *(line for stack in stacks for line in stack)])
