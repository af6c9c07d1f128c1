"""The examples of `docs/coordination.md` are true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from coordination_kit import Table, nonce

from converge_p2p.core.errors import LocalError
from converge_p2p.core.oplog import coordination as bodies
from converge_p2p.core.replica import coordination as commands
from converge_p2p.core.view import polls

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coordination.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_of_the_page_does_what_it_says(number: int) -> None:
    table = Table()
    people = {name: getattr(table, name) for name in ("ann", "ben", "cid", "dan", "eve", "fay")}

    def refused(who: object, command: object) -> str:
        with pytest.raises(LocalError) as refusal:
            table.ask(who, command)  # type: ignore[arg-type]
        return str(refusal.value)

    names = {
        **vars(bodies), **vars(polls), **vars(commands), **people,
        "do": table.do, "ask": table.ask, "sign": table.sign, "refused": refused,
        "see": lambda: table.coordination, "task": table.task(table.ann),
        "dans_nonce": nonce(1), "eves_nonce": nonce(2), "fays_nonce": nonce(3),
    }  # fmt: skip
    exec(compile(EXAMPLES[number], f"{PAGE.name}, example {number + 1}", "exec"), names)


def test_the_page_shows_every_command() -> None:
    shown = set(re.findall(r"\b([A-Z]\w+)\(", "".join(EXAMPLES)))
    told = {kind.__name__ for kind in (*commands.CoordinationCommand.__args__, commands.CancelFor)}
    assert told <= shown
