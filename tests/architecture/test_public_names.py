"""The lazy public names: what the table promises exists, and a type checker sees the same names as a program."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import converge_p2p

PUBLIC = [name for name in converge_p2p.__all__ if name != "__version__"]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported(name: str) -> None:
    value = getattr(converge_p2p, name)
    assert getattr(value, "__name__", name).rpartition(".")[2] == name


def test_a_type_checker_is_told_exactly_the_names_of_the_table() -> None:
    tree = ast.parse(Path(converge_p2p.__file__).read_text(encoding="utf-8"))
    block = next(
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    )
    told = {alias.asname or alias.name: statement.module for statement in block.body for alias in statement.names}
    assert set(told) == set(PUBLIC)
    for name, module in told.items():
        home = converge_p2p._HOME[name]
        assert home in (module, f"{module}.{name}"), f"{name} is told to live in {module}, the table says {home}"


def test_an_unknown_name_is_refused_with_the_name_in_the_message() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = converge_p2p.Nonsense


def test_dir_lists_a_public_name_before_it_was_used() -> None:
    code = (
        "import converge_p2p, sys; assert 'Identity' not in vars(converge_p2p); print('Identity' in dir(converge_p2p))"
    )
    run = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == "True"
