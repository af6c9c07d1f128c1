"""The program's log shows errors without the values of local variables."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT / "node") not in sys.path:
    sys.path.insert(0, str(ROOT / "node"))

from converge_node.config import LogSection  # noqa: E402
from converge_node.logs import LOGGED_FRAMES_MAX, configure_logs  # noqa: E402


@pytest.fixture
def _root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in root.handlers:
        if isinstance(handler, logging.StreamHandler) and handler not in handlers:
            handler.stream.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def fail(depth: int) -> None:
    secret_of_the_task = "sesame-4711"
    if depth:
        fail(depth - 1)
    raise ValueError(f"at the bottom of {len(secret_of_the_task)}")


@pytest.mark.usefixtures("_root_logger")
@pytest.mark.parametrize("kind", ["json", "console"])
def test_a_logged_error_shows_where_it_happened_and_no_value_of_a_variable(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "log"
    configure_logs(LogSection(format=kind, file=str(file)))
    try:
        fail(200 if kind == "json" else 2)
    except ValueError:
        logging.getLogger("library").exception("it failed")
    text = file.read_text()
    assert "at the bottom of 11" in text
    assert "sesame" not in text
    if kind == "json":
        (line,) = text.splitlines()
        frames = json.loads(line)["exception"][0]["frames"]
        assert 1 < len(frames) <= LOGGED_FRAMES_MAX + 1, "a deep recursion must not flood the log"
