"""The project's own files keep their promises: README and Makefile agree, locks are exact, files stay readable."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_LINES_MAX = 500
SOURCES = sorted([*ROOT.glob("converge_p2p/**/*.py"), *ROOT.glob("node/**/*.py")])
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[a-z,]+\])?==(?P<version>[^\s;]+)(\s*;.*)?$")


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def locked(name: str) -> dict[str, str]:
    """Return package name (normalised) → version, and refuse every line that is not an exact pin."""
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _PIN.match(line)
        assert match, f"requirements/{name}: not an exact pin: {line!r}"
        pins[re.sub(r"[-_.]+", "-", match["name"]).lower()] = match["version"]
    return pins


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_make_command_in_a_document_is_a_target(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)", code))
    assert named <= make_targets()


def test_the_readme_names_the_two_commands_a_newcomer_needs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("make demo", "make test"):
        assert re.search(rf"^{command}\b", readme, re.MULTILINE), f"README.md does not show `{command}`"


def test_continuous_integration_runs_the_test_command_of_the_readme() -> None:
    assert re.search(r"^phase \w+ make test$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)


def test_no_test_stands_where_make_does_not_look_for_it() -> None:
    marked = {
        (path.relative_to(ROOT).parts[1], mark)
        for path in ROOT.glob("tests/*/*.py")
        for mark in re.findall(r"\bmark\.(network|simulation)\b", path.read_text(encoding="utf-8"))
    }
    assert {folder for folder, mark in marked if mark == "simulation"} == {"simulation"}
    assert not {folder for folder, mark in marked if mark == "network"} & {"core", "vectors", "simulation"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_every_relative_link_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    broken = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert broken == []


@pytest.mark.parametrize("name", ["base.txt", "dev.txt", "docs.txt"])
def test_a_lock_names_no_host_and_no_place_of_one_machine(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--find-links|--trusted-host|^/", text, re.MULTILINE)


def test_the_locks_pin_every_declared_dependency_and_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    base, dev = locked("base.txt"), locked("dev.txt")

    def names(requirements: list[str]) -> set[str]:
        return {re.sub(r"[-_.]+", "-", re.split(r"[\s<>=!~\[;]", text)[0]).lower() for text in requirements}

    assert names(project["project"]["dependencies"]) <= set(base)
    assert names(project["build-system"]["requires"]) <= set(base)
    assert names(project["project"]["optional-dependencies"]["dev"]) <= set(dev)
    assert base == {name: dev.get(name) for name in base}
    docs = locked("docs.txt")
    assert {"mkdocs-material", "mkdocstrings-python"} <= set(docs)
    assert docs == {**docs, **{name: version for name, version in dev.items() if name in docs}}


def test_developers_and_continuous_integration_have_what_every_extra_installs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert {"llm", "openai", "anthropic", "mistral", "mcp", "otel"} < set(extras)
    for name, requirements in extras.items():
        assert set(requirements) <= set(extras["dev"]), f"the tests of the extra {name} would be left out"


@pytest.mark.parametrize(
    "name",
    [
        "scripts/find-python",
        "scripts/system-packages",
        "scripts/fresh-clone-check",
        "scripts/newcomer",
        "scripts/memory-folder",
        ".ci/run",
    ],
)
def test_a_script_is_executable_and_parses(name: str) -> None:
    script = ROOT / name
    assert script.stat().st_mode & 0o111
    shell = script.read_text(encoding="utf-8").partition("\n")[0].split("/")[-1].split()[-1]
    subprocess.run([shell, "-n", str(script)], check=True, timeout=10)


def test_an_interpreter_that_is_too_old_is_refused_with_its_version(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n', encoding="utf-8")
    old.chmod(0o755)
    run = subprocess.run([ROOT / "scripts/find-python", old], capture_output=True, check=False, text=True, timeout=10)
    assert run.returncode == 1
    assert "Python 3.9.2" in run.stderr
    assert "3.11 or newer" in run.stderr


def bare_machine(folder: Path, *, user: int) -> dict[str, str]:
    """Return an environment whose PATH holds no compiler, and an apt-get that writes down what it was asked for."""
    programs = {"id": f"echo {user}", "apt-get": f'echo "$*" >> {folder}/asked'}
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return {"PATH": str(folder)}


def test_without_root_the_exact_command_for_missing_system_packages_is_printed(tmp_path: Path) -> None:
    environment = bare_machine(tmp_path, user=1000)
    command = [ROOT / "scripts/system-packages", sys.executable]
    run = subprocess.run(command, env=environment, capture_output=True, check=False, text=True, timeout=30)
    assert run.returncode == 1
    assert re.search(r"sudo apt-get install .*\bgcc\b.*\blibgmp-dev\b", run.stderr)
    assert not (tmp_path / "asked").exists(), "nothing may be installed without root"


def test_as_root_missing_system_packages_are_installed_without_a_question(tmp_path: Path) -> None:
    environment = bare_machine(tmp_path, user=0)
    subprocess.run([ROOT / "scripts/system-packages", sys.executable], env=environment, check=True, timeout=30)
    update, install = (tmp_path / "asked").read_text(encoding="utf-8").splitlines()
    assert update.startswith("update")
    assert "--yes" in install
    assert {"gcc", "libgmp-dev"} <= set(install.split())


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_a_source_file_says_what_it_is_and_stays_readable(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    assert text.count("\n") <= SOURCE_LINES_MAX, "is this still one room?"
    assert text.lstrip().startswith('"""'), "the file has no header"
