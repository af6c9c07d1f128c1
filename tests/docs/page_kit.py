"""Pages as what they tell somebody to type: their command blocks, what stands around them, and terminals to run them.

Knows: Markdown fences, the comments `<!-- not run: … -->`, `<!-- where: … -->` and `<!-- when: … -->`, bash, and
the tree of commands. Must not know: what a command does, or which pages there are.
Source: docs/contributing.md, Commands on pages.
"""

from __future__ import annotations

import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from converge_node.cli.main import root
from converge_p2p.core.identity import Identity

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("sh", "bash", "console")
STEP_S = 240.0
"""How long a block may take, and a node to start: far more than it needs on a busy machine."""
END_S = 40.0
"""How long a terminal may take to end once it was told to."""
ANY_LINES = "…"
STARTED = "next node"
"""How the last line begins that a node prints when it has started."""

_FENCE = re.compile(
    r"(?P<before>(?:^<!--[^\n]*-->\n+)*)^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$(?:\n+^```text\n(?P<output>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"<!-- (\w[\w ]*): (.*?) -->")
_ASSIGNMENT = re.compile(r"\w+=")
_OPERATORS = ("|", "||", "&", "&&", ";", ";;", "(", ")", ">", ">>", "<", "<<", "|&", "&>", ">&")


@dataclass(frozen=True, slots=True)
class Block:
    """One command block.

    Attributes:
        page: the page it stands on, from the top of the checkout.
        line: where it begins.
        text: what it says.
        output: what the page says it prints, or None. `…` stands for anything in a line, and alone for any lines.
        reason: why it is not run, or empty.
        where: words to replace, and what in bash gives what they stand for. `$word` is the word itself there, and
            `key NAME` a public key.
        when: what has to succeed first, and is tried until it does: what a reader sees come.
    """

    page: str
    line: int
    text: str
    output: str | None
    reason: str
    where: tuple[tuple[str, str], ...] = ()
    when: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the command blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        if match["language"] not in LANGUAGES:
            continue
        comments = _COMMENT.findall(match["before"])
        reasons = [value for name, value in comments if name == "not run"]
        where = tuple(
            (word, command.strip())
            for name, value in comments
            if name == "where"
            for words, _, command in [value.partition("=")]
            for word in words.split()
        )
        line = text.count("\n", 0, match.start("text"))
        name = str(page.relative_to(ROOT))
        when = " && ".join(value for name, value in comments if name == "when")
        found.append(Block(name, line, match["text"], match["output"], "".join(reasons), where, when))
    return found


def lines_of(text: str) -> list[str]:
    """Return the commands of a block: its lines, those that a backslash continues as one."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def calls_in(text: str, program: str = "converge-node") -> Iterator[list[str]]:
    """Yield the words after each call of a program, also of calls within `$(…)`."""
    for line in lines_of(text):
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words = list(lexer)
        for index, word in enumerate(words):
            if word == program:
                ends = (at for at in range(index, len(words)) if words[at] in _OPERATORS)
                yield words[index + 1 : next(ends, len(words))]
            elif f"{program} " in word:
                yield from calls_in(word.removeprefix("$(").removesuffix(")").replace("$(", "\n"), program)


def understood(words: list[str]) -> None:
    """Parse the words of a call with the tree of commands. Raises click.UsageError where they are none of it."""
    command: click.Command = root
    parent: click.Context | None = None
    name = "converge-node"
    while True:
        # a context that parsed a group holds the rest of the words
        context = command.make_context(name, list(words), parent=parent)
        if not isinstance(command, click.Group):
            return
        found, inner, words = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None, found
        name, command, parent = found or "", inner, context


def starts_a_node(line: str) -> bool:
    """Whether a line runs a node in the foreground, so that the next one is typed in another terminal."""
    words = shlex.split(line, comments=True)
    while words and _ASSIGNMENT.match(words[0]):
        words = words[1:]
    if words[:1] != ["converge-node"] or "&" in words:
        return False
    words = words[1:]
    while words[:1] == ["--home"]:
        words = words[2:]
    return not words or words[0] == "run" or words[0].startswith("--")


def fits(printed: str, shown: str) -> bool:
    """Whether what was printed is what a page shows."""
    parts = []
    for line in shown.splitlines():
        if line.strip() == ANY_LINES:
            parts.append(r"(?:[^\n]*\n)*")
        else:
            # columns are as wide as what stands in them, which the page may have shortened
            pieces = [re.sub(r"(\\ ){2,}", " {2,}", re.escape(piece)) for piece in re.split(r" *… *", line.rstrip())]
            parts.append(r"[^\n]*".join(pieces) + r" *\n")
    whole = f"{printed}\n" if printed and not printed.endswith("\n") else printed
    return re.fullmatch("".join(parts), whole) is not None


class Terminal:
    """A bash that is given blocks, one after the other, and keeps its variables."""

    def __init__(self, folder: Path, environment: Mapping[str, str], errors: Path) -> None:
        self._folder, self._errors, self._count = folder, errors, 0
        self._mark = f"--- end of a block of terminal {id(self)}:"
        self._lines: queue.Queue[str | None] = queue.Queue()
        self.output: list[str] = []
        with errors.open("ab") as log:
            self._bash = subprocess.Popen(
                ["bash", "--norc", "-eu", "-o", "pipefail"],
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._bash.stdout is not None
        for line in self._bash.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _give(self, text: str) -> None:
        self._count += 1
        script = self._errors.with_suffix(f".{self._count}.sh")
        script.write_text(text, encoding="utf-8")
        assert self._bash.stdin is not None
        # what a block runs must not read the commands that follow it
        self._bash.stdin.write(f". {shlex.quote(str(script))} </dev/null; printf '\\n%s%d\\n' '{self._mark}' $?\n")
        self._bash.stdin.flush()

    def _until(self, ends: str, what: str) -> str:
        printed: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=STEP_S)
            except queue.Empty:
                raise AssertionError(f"{what}\nprinted nothing new for {STEP_S:.0f} s: {self.said(printed)}") from None
            assert line is not None, f"{what}\nfailed: {self.said(printed)}"
            if line.startswith(ends):
                self.output.append(line)
                return "".join(printed)
            printed.append(line)
            self.output.append(line)

    def said(self, printed: list[str]) -> str:
        """What went to the output and to the errors of this terminal."""
        return "".join(printed) + "\n" + self._errors.read_text(encoding="utf-8", errors="replace")[-4000:]

    def run(self, text: str) -> str:
        """Run a block to its end, and return what it printed. Raises AssertionError if a command of it fails."""
        self._give(text)
        printed = self._until(self._mark, text)
        return printed.removesuffix("\n")

    def start(self, line: str) -> None:
        """Start a node in the foreground of this terminal, and return when it has started."""
        self._give(line)
        self._until(STARTED, line)

    def close(self) -> int:
        """End what runs here in an orderly way, then the terminal. Return its exit status.

        Raises:
            AssertionError: something went on all the same; it was killed.
        """
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._signal(signal.SIGTERM)
        # the output ends when the last process that could write to it has ended
        self._reader.join(END_S)
        orderly = not self._reader.is_alive()
        self._signal(signal.SIGKILL)
        self._reader.join()
        self._bash.stdout.close()
        status = self._bash.wait()
        assert orderly, f"a terminal did not end: {self.said(self.output)}"
        return status

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._bash.pid, number)
        except ProcessLookupError:
            pass  # all have ended


class Desk:
    """A folder and a home of somebody who follows a page, with as many terminals as there are nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._bin, self._logs = folder / "work", folder / "bin", folder / "logs"
        for each in (self.folder, self._bin, self._logs, folder / "run"):
            each.mkdir(mode=0o700)
        library = f"{ROOT}:{ROOT / 'node'}${{PYTHONPATH:+:$PYTHONPATH}}"
        for name, arguments in (("python", ""), ("converge-node", " -m converge_node")):
            program = self._bin / name
            program.write_text(f'#!/bin/sh\nPYTHONPATH={library} exec {sys.executable}{arguments} "$@"\n', "utf-8")
            program.chmod(0o755)
        key = self._bin / "key"
        key.write_text(f"#!/bin/sh\nexec cat {folder}/keys/$1\n", encoding="utf-8")
        key.chmod(0o755)
        (folder / "keys").mkdir()
        for name in ("ANN", "BOB", "CLEO", "DAN", "EVE", "FINN", "GIL"):
            public_key = Identity.from_seed(name.ljust(32).encode()).public_key
            (folder / "keys" / name).write_text(f"key:{public_key.hex()}", encoding="utf-8")
        for name in ("examples", "scripts", "node"):
            (self.folder / name).symlink_to(ROOT / name)
        self._environment = {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder / "run"),
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            # on loopback only, whatever addresses the machine has
            "CONVERGE_NODE_NODE__PROFILE": "test",
        }
        self._main = self._open("main")
        self._nodes: list[Terminal] = []

    def _open(self, name: str) -> Terminal:
        return Terminal(self.folder, self._environment, self._logs / name)

    def do(self, block: Block) -> None:
        """Run a block: what starts a node in a terminal of its own. Raises AssertionError where the page is wrong."""
        text = block.text
        if block.when:
            self._main.run(f"until {block.when}; do sleep 0.2; done >/dev/null 2>&1")
        printed, waiting = "", []
        for line in lines_of(text) if any(map(starts_a_node, lines_of(text))) else [text]:
            if not starts_a_node(line):
                waiting.append(line)
                continue
            printed += self._type(block, "\n".join(waiting)) if waiting else ""
            waiting = []
            self._nodes.append(self._open(f"node{len(self._nodes) + 1}"))
            self._nodes[-1].start(self._filled(block, line))
            printed += "".join(self._nodes[-1].output)
        if waiting:
            printed += self._type(block, "\n".join(waiting))
        if block.output is not None:
            assert fits(printed, block.output), f"{block} printed\n{printed}\nand the page says\n{block.output}"

    def _type(self, block: Block, text: str) -> str:
        return self._main.run(self._filled(block, text))

    def _filled(self, block: Block, text: str) -> str:
        for name, command in block.where:
            place = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])")
            if place.search(text):
                value = self._main.run(f"word={name}; printf %s {command}")
                assert value, f"{block}: nothing stands for {name}"
                text = place.sub(lambda _, value=value: value, text)  # type: ignore[misc]
        return text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ends = []
        with ExitStack() as all_of_them:
            for terminal in (self._main, *self._nodes):
                all_of_them.callback(lambda terminal=terminal: ends.append(terminal.close()))
        if error is None:
            assert set(ends) <= {0, -signal.SIGTERM}, ends
            for log in self._logs.iterdir():
                assert "Traceback" not in log.read_text(encoding="utf-8", errors="replace"), log
