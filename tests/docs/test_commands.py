"""Every command block on a page is run as it stands or says why not, and every command line is one that exists."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from page_kit import ROOT, Block, Desk, blocks_of, calls_in, fits, starts_a_node, understood

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("docs/decisions/*.md"))]
BLOCKS = {page: blocks_of(page) for page in PAGES}
RUN = [page for page in PAGES if any(not block.reason for block in BLOCKS[page])]
INLINE = re.compile(r"(?<!`)`(converge-node [^`\n]+)`(?!`)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.network
@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_the_commands_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    with Desk(tmp_path) as desk:
        for block in BLOCKS[page]:
            if not block.reason:
                desk.do(block)


def problems(calls: Iterator[list[str]]) -> Iterator[str]:
    for words in calls:
        try:
            understood([re.sub(r"^(\w+)(\|\w+)+$", r"\1", word) for word in words if word != "…"])
        except click.exceptions.Exit:
            pass  # --help and --version say what they say
        except click.UsageError as error:
            message = error.format_message()
            if "does not exist" not in message and "No such file" not in message:  # files of the reader
                yield f"converge-node {' '.join(words)}: {message}"


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCKS[page]], ids=name_of)
def test_every_command_line_in_a_block_is_one_that_exists(page: Path) -> None:
    assert [found for block in BLOCKS[page] for found in problems(calls_in(block.text))] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_within_a_sentence_is_one_that_exists(page: Path) -> None:
    lines = INLINE.findall(page.read_text(encoding="utf-8"))
    found = [problem for line in lines for problem in problems(calls_in(line))]
    # a sentence names a command without its arguments
    assert [problem for problem in found if not re.search("Missing (argument|option)", problem)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_says_what_it_is_and_none_is_left_out_without_a_reason(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) % 2 == 0
    assert all(fences[::2]), "a fence without a language: `sh` is run, `text` is output"
    assert set(fences[1::2]) <= {""}
    assert sum(fence in ("sh", "bash", "console") for fence in fences[::2]) == len(BLOCKS[page])
    for block in BLOCKS[page]:
        for test in re.findall(r"tests/[\w/]+\.py", block.reason):
            assert (ROOT / test).is_file(), f"{block}: what is said to run it is not there: {test}"
        assert not (block.reason and block.output), f"{block}: output of what is not run is not known to be true"


def test_what_is_compared_would_be_found_to_differ() -> None:
    shown = "pool  …\n…\nstate  done\n"
    assert fits("pool  ab12\nstate  done\n", shown)
    assert fits("pool  ab12\nx\ny\nstate  done\n", shown)
    assert not fits("pool  ab12\nstate  open\n", shown)
    assert not fits("pool  ab12\nstate  done\nmore\n", shown)
    assert not fits("", "x\n")


def test_a_command_line_that_does_not_exist_is_found() -> None:
    text = (
        'x=$(converge-node task shwo a) && converge-node id --hue | cat\nconverge-node join "$(converge-node mehs)"\n'
    )
    assert [words[0] for words in calls_in(text)] == ["task", "id", "join", "mehs"]
    found = list(problems(calls_in(text)))
    assert len(found) == 3, found
    assert list(problems(iter([["pool", "show"]]))) == ["converge-node pool show: Missing argument 'POOL'."]


@pytest.mark.parametrize(
    ("line", "starts"),
    [
        ("converge-node", True),
        ("PYTHONPATH=. converge-node run --home ./a", True),
        ("converge-node --home ./a", True),
        ("converge-node --home ./a status", False),
        ("converge-node id -q", False),
        ("echo converge-node run", False),
    ],
)
def test_a_node_is_given_a_terminal_of_its_own(line: str, starts: bool) -> None:
    assert starts_a_node(line) == starts


def test_a_failing_command_fails_its_block(tmp_path: Path) -> None:
    block = Block("page", 1, "false\necho not reached", None, "")
    with pytest.raises(AssertionError, match="failed"), Desk(tmp_path) as desk:
        desk.do(block)
