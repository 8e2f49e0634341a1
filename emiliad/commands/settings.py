"""`emiliad config`: the table of settings."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.table import Table

from emiliad.config import all_settings


def run(*, as_json: bool) -> int:
    """Prints every setting: name, default, meaning, secret or not."""
    if as_json:
        rows = [
            {"name": s.name, "default": s.shown_default, "help": s.help, "secret": s.secret}
            for s in all_settings()
        ]
        json.dump(rows, sys.stdout, indent=2)
        print()
        return 0
    table = Table("name", "default", "meaning", "secret", box=None, pad_edge=False)
    for setting in all_settings():
        meaning = setting.help
        if choices := ", ".join(filter(None, setting.choices)):
            meaning += f" ({choices})"
        table.add_row(
            setting.name, setting.shown_default, meaning, "secret" if setting.secret else ""
        )
    Console(soft_wrap=False, width=None if sys.stdout.isatty() else 160).print(table)
    return 0
