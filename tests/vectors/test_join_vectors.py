"""Join requests are read as they are written, and whatever else a stranger sends is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from generate import FOLDER
from join_story import POOL

from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError
from converge_p2p.core.model.join_request import Application, HeldRequest, JoinAnswer, JoinAsk, JoinState
from converge_p2p.core.types import PublicKey
from converge_p2p.node.switchboard import ASK, DECIDED

READ: dict[str, Any] = json.loads((FOLDER / "joins.json").read_text())
KEYS = [PublicKey(bytes([number]) * 32) for number in (2, 1)]


def test_requests_and_answers_are_read_as_they_are_written() -> None:
    ask = bytes.fromhex(READ["ask"]["hex"])
    assert ask[:1] == ASK
    assert JoinAsk.from_bytes(ask[1:]) == JoinAsk(POOL, READ["ask"]["note"])
    assert bytes.fromhex(READ["decided"]) == DECIDED + POOL
    for name, data in READ["answers"].items():
        answer = JoinAnswer.from_bytes(bytes.fromhex(data))
        assert answer.kind.name.lower() == name
        assert answer.to_bytes().hex() == data


@pytest.mark.parametrize("name", READ["rejected"])
def test_another_request_is_refused(name: str) -> None:
    with pytest.raises(CodecError):
        JoinAsk.from_bytes(bytes.fromhex(READ["rejected"][name]))


@pytest.mark.parametrize("name", READ["rejected_answers"])
def test_another_answer_is_refused(name: str) -> None:
    with pytest.raises(CodecError):
        JoinAnswer.from_bytes(bytes.fromhex(READ["rejected_answers"][name]))


def test_what_is_kept_is_read_as_it_was_written_and_a_damaged_record_is_refused() -> None:
    held = HeldRequest(POOL, KEYS[0], "n", 1, 2, JoinState.REFUSED, b"p", "r", b"m", "192.0.2.1")
    application = Application(
        POOL, "n", ("a",), 1, 2, JoinState.PENDING, dict.fromkeys(KEYS, b"p"), dict.fromkeys(KEYS, "")
    )
    assert HeldRequest.from_bytes(held.to_bytes()) == held
    before = encode(decode(held.to_bytes())[:-1])
    assert HeldRequest.from_bytes(before) == replace(held, host=""), "written by an earlier version"
    assert Application.from_bytes(application.to_bytes()) == application
    for kind, data in ((HeldRequest, held.to_bytes()), (Application, application.to_bytes())):
        for wrong in (b"", data[:-1], data + b"\0", READ["ask"]["hex"].encode()):
            with pytest.raises(CodecError):
                kind.from_bytes(wrong)
