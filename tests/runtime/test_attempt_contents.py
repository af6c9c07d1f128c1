"""What an attempt makes of large contents: brought before the handler runs, kept after it, and what if that fails."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from converge_p2p.core.codec import decode_value, encode_value
from converge_p2p.core.errors import ConvergeError, LimitExceeded, NetworkError, StoreError
from converge_p2p.core.model.task import Outcome, Task, TaskState, TaskView
from converge_p2p.core.types import BlobRef, PoolId, PublicKey, TaskId
from converge_p2p.runtime.attempt import Finished, TryAgain, WorkContext, run_attempt
from converge_p2p.runtime.threads import BoundedThreads

SPEC = Task("count", {"text": "a reference"}).to_spec(key=b"k")
VIEW = TaskView(TaskId(b"t" * 32), PoolId(b"p" * 32), PublicKey(b"s" * 32), SPEC, TaskState.ASSIGNED)


class Contents:
    """Brings one text, and marks what it keeps; or fails."""

    def __init__(self, *, bringing: ConvergeError | None = None, keeping: ConvergeError | None = None) -> None:
        self._bringing = bringing
        self._keeping = keeping

    async def bring(self, view: TaskView) -> TaskView:
        if self._bringing is not None:
            raise self._bringing
        return replace(view, spec=replace(view.spec, inputs=encode_value({"text": "the content"})))

    async def keep_result(self, result: bytes) -> bytes:
        if self._keeping is not None:
            raise self._keeping
        return encode_value({"kept": decode_value(result)})

    async def put(self, content: bytes | str | Path) -> BlobRef:
        raise AssertionError("not used here")

    async def get(self, reference: BlobRef) -> bytes:
        raise AssertionError("not used here")

    async def fetch(self, reference: BlobRef, to: str | Path) -> None:
        raise AssertionError("not used here")


async def attempt(contents: Contents) -> tuple[Finished | TryAgain, list[Any]]:
    seen: list[Any] = []

    async def handler(view: TaskView, context: WorkContext) -> Any:
        assert context.blobs is contents
        seen.append(view.inputs["text"])
        return "done"

    end = await run_attempt(
        handler, VIEW, WorkContext(VIEW.id, (0, 0)), timeout_s=math.inf, threads=BoundedThreads(1), contents=contents
    )
    return end, seen


async def test_a_handler_is_given_contents_and_what_it_returns_is_kept() -> None:
    end, seen = await attempt(Contents())
    assert seen == ["the content"]
    assert end == Finished(Outcome.COMPLETED, encode_value({"kept": "done"}))


async def test_without_its_contents_a_task_is_tried_again_and_the_handler_does_not_run() -> None:
    end, seen = await attempt(Contents(bringing=NetworkError("nobody has it")))
    assert isinstance(end, TryAgain)
    assert "nobody has it" in end.reason
    assert seen == []


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (LimitExceeded("BLOB_STORE_BYTES_MAX", "no room"), True),
        (LimitExceeded("BLOBS_KEPT_MAX", "no room"), True),
        (StoreError("the disk fails"), True),
        (LimitExceeded("BLOB_VALUE_BYTES_MAX", "too large"), False),
    ],
)
async def test_a_result_that_has_no_room_here_is_tried_again_and_one_that_is_too_large_is_not(
    error: ConvergeError, again: bool
) -> None:
    end, _ = await attempt(Contents(keeping=error))
    assert isinstance(end, TryAgain) is again
