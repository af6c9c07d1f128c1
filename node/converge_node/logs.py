"""The log: one line per event, for people or machines, to standard error or a file.

Knows: structlog and the standard library's logging, through which every library speaks. Must not know: events.
Source: design rule "standard output is data, standard error is the log"; times are RFC 3339 in UTC. Tracebacks never
show local variables.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final, TextIO

import structlog

from converge_node.config import LogSection
from converge_node.log_book import LogBook
from converge_node.log_fields import add_trace, remove_from_text, remove_secrets
from converge_p2p.client.watch_schema import LogLevel
from converge_p2p.core.errors import ConfigError

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
LOGGED_FRAMES_MAX: Final = 20
_NOISY: Final = ("libp2p", "hypercorn", "multiaddr")


def configure_logs(section: LogSection, *, json_lines: bool = False) -> LogBook:
    """Send every log record of the process to the one place that the settings name.

    Args:
        section: level, format and file.
        json_lines: JSON whatever the format says.

    Returns:
        The newest lines, as JSON, for whoever asks the running node.

    Raises:
        ConfigError: the log file cannot be opened.
    """
    stream = _open_log(section.file)
    console = section.format == "console" or (section.format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        add_trace,
    ]
    as_json: list[structlog.typing.Processor] = [
        _tracebacks(), remove_secrets, structlog.processors.JSONRenderer(default=str), remove_from_text,
    ]  # fmt: skip
    final = as_json
    if console and not json_lines:
        colors = stream.isatty() and not os.environ.get("NO_COLOR")
        renderer = structlog.dev.ConsoleRenderer(
            colors=colors, pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
        final = [remove_secrets, renderer, remove_from_text]
    handler, book = logging.StreamHandler(stream), LogBook()
    for target, processors in ((handler, final), (book, as_json)):
        target.setFormatter(
            structlog.stdlib.ProcessorFormatter(
                foreign_pre_chain=shared,
                processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *processors],
            )
        )
    root = logging.getLogger()
    root.handlers[:] = [handler, book]
    set_log_level(section.level)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    return book


def set_log_level(level: LogLevel) -> None:
    """Write records of this severity and above from now on."""
    logging.getLogger().setLevel(_LEVELS[level])
    adopt_library_logs(level)


def log_level() -> str:
    """Return the least severity that is written."""
    now = logging.getLogger().level
    return next((name for name, level in _LEVELS.items() if level == now), logging.getLevelName(now).lower())


def adopt_library_logs(level: LogLevel) -> None:
    """Bring the records of the libraries to this log; to be called again after they are imported.

    libp2p cuts its loggers off from the root when it is imported, and its records would reach the terminal in a form
    of their own. It also calls a peer that does not answer an error, which between strangers is normal, so its records
    are only shown when somebody debugs; what matters of them is logged and counted by the network room.
    """
    for name in _NOISY:
        logger = logging.getLogger(name)
        logger.propagate = True
        logger.setLevel(logging.NOTSET if level == "debug" else logging.CRITICAL)


def _tracebacks() -> structlog.processors.ExceptionRenderer:
    """Errors as values, without the local variables of each frame: these hold inputs of tasks, keys and whole logs."""
    transformer = structlog.tracebacks.ExceptionDictTransformer(show_locals=False, max_frames=LOGGED_FRAMES_MAX)
    return structlog.processors.ExceptionRenderer(transformer)


def _open_log(file: str) -> TextIO:
    if not file:
        return sys.stderr
    try:
        handle = os.open(os.path.expanduser(file), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"cannot open the log file {file}: {error.strerror}") from error
    return os.fdopen(handle, "a", encoding="utf-8")
