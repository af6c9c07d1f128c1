"""The files that others deploy a node with: what they name exists, and what they say fits the program."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from page_kit import ROOT, calls_in, understood

from converge_node.config import load_settings
from converge_p2p.node.metric_catalogue import all_metrics

DEPLOY = ROOT / "node" / "deploy"
INSTRUCTIONS = {
    "FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT",
    "CMD",
}  # fmt: skip


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of the container file, stage by stage."""
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found: list[list[tuple[str, str]]] = []
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        instruction, _, rest = line.partition(" ")
        assert instruction in INSTRUCTIONS, line
        if instruction == "FROM":
            found.append([])
        found[-1].append((instruction, rest.strip()))
    return found


def values(stage: list[tuple[str, str]], instruction: str) -> list[str]:
    return [rest for name, rest in stage if name == instruction]


def test_what_the_image_is_built_from_is_in_the_checkout_and_enough() -> None:
    build, final = stages()
    copied = {path for rest in values(build, "COPY") for path in shlex.split(rest)[:-1]}
    for path in copied:
        assert (ROOT / path).exists(), path
    # the build reads these: packages, their description, and what the description names
    assert {"requirements", "pyproject.toml", "README.md", "LICENSE", "converge_p2p", "node"} <= copied
    for rest in values(build, "RUN"):
        for lock in re.findall(r"-r (\S+)", rest):
            assert (ROOT / lock).is_file()
    (source,) = (rest for rest in values(final, "COPY"))
    stage, place, target = shlex.split(source)
    assert stage == f"--from={values(build, 'FROM')[0].split(' AS ')[1]}"
    assert place == target, "a virtual environment cannot be moved"
    assert any(place in rest for rest in values(build, "RUN"))
    assert values(build, "FROM")[0].split()[0] == values(final, "FROM")[0], "both stages have one interpreter"


def test_the_image_runs_a_node_that_is_no_root_and_says_whether_it_is_ready() -> None:
    final = stages()[-1]
    order = [name for name, _ in final]
    (user,) = values(final, "USER")
    assert user not in ("root", "0")
    assert any(re.search(rf"useradd .*\b{user}\b", rest) for rest in values(final, "RUN"))
    assert order.index("USER") < order.index("ENTRYPOINT")
    for name in ("ENTRYPOINT", "CMD"):
        assert values(final, name)[0].startswith("["), "the exec form passes signals on"
    program = yaml.safe_load(values(final, "ENTRYPOINT")[0])
    assert program == ["converge-node"]
    understood(yaml.safe_load(values(final, "CMD")[0]))
    health = yaml.safe_load(values(final, "HEALTHCHECK")[0].split(" CMD ")[1])
    assert health == ["converge-node", "health", "--ready"]
    understood(health[1:])
    assert values(final, "STOPSIGNAL") == ["SIGTERM"]


def test_the_settings_of_the_image_are_settings_that_there_are() -> None:
    final = stages()[-1]
    environment = dict(word.split("=", 1) for rest in values(final, "ENV") for word in shlex.split(rest))
    config = load_settings(None, environment=environment, flags={}).config
    (port,) = values(final, "EXPOSE")
    assert config.network.listen == (f"/ip4/0.0.0.0/tcp/{port}",)
    (folder,) = values(final, "VOLUME")
    assert environment["CONVERGE_NODE_HOME"] == folder
    assert any(f"--home-dir {folder}" in rest for rest in values(final, "RUN"))


def test_prometheus_reads_the_node_where_the_page_says_that_it_answers() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    assert f'metrics.listen = "{target}"' in page
    load_settings(None, environment={}, flags={"metrics.listen": target})
    for name in config["rule_files"]:
        assert (DEPLOY / name).is_file()


RULES = yaml.safe_load((DEPLOY / "converge-node.rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_there_are_and_says_what_to_look_at(rule: dict[str, object]) -> None:
    known = all_metrics()
    query, summary = str(rule["expr"]), str(rule["annotations"]["summary"])  # type: ignore[index]
    names = re.findall(r"converge_\w+", query)
    assert set(names) <= set(known)
    assert names or "up{" in query
    for label in re.findall(r"\$labels\.(\w+)", summary):
        assert label == "instance" or label in {known[name].label for name in names}
    for command in re.findall(r"`(.*?)`", summary):
        for words in calls_in(command):
            understood(words)
