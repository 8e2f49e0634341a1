"""Logging: structlog events, JSON for machines, aligned text on a terminal, always on stderr."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog


def configure(level: str = "info", style: str = "auto") -> None:
    """Sets the process's logging up once. `style` is auto, json or text."""
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
        if text
        else structlog.processors.JSONRenderer(ensure_ascii=False)
    )
    errors = [] if text else [structlog.processors.format_exc_info]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *errors,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def get(name: str) -> Any:
    """A logger whose events carry `component=name`."""
    return structlog.get_logger(component=name)
