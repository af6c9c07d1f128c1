"""What a node lets happen can be said in its settings file, and what cannot be is said with its line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from converge_node.config import example_file, load_settings
from converge_node.node_policy import node_policy
from converge_p2p.core.errors import ConfigError, LimitExceeded, NotAuthorised
from converge_p2p.core.governance.admission import admission_rule, forget_admission
from converge_p2p.core.governance.custom import forget_model, registered_model
from converge_p2p.core.governance.evaluators import forget_evaluator, knows_rule
from converge_p2p.core.model.decision import InvokeTool, LeavePool
from converge_p2p.core.types import PoolId
from converge_p2p.node.policy import NodePolicy

RULES = """
from converge_p2p.core.governance.custom import GovernanceModel

class Unanimous(GovernanceModel):
    pass

def admit(agent, context):
    return True

def judge(inputs, result):
    return True

def opinion(motion):
    return None

number = 7
"""


def settings_of(folder: Path, text: str) -> NodePolicy:
    file = folder / "config.toml"
    file.write_text(text, encoding="utf-8")
    return node_policy(load_settings(file, environment={}).config)


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_node_rules.py").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget_model("unanimous")
    forget_admission("friends")
    forget_admission("a")
    forget_evaluator("fair")


def test_the_defaults_allow_what_the_librarys_defaults_allow(tmp_path: Path) -> None:
    policy = settings_of(tmp_path, "")
    assert policy.trust == NodePolicy().trust
    assert policy.safety.resources == NodePolicy().safety.resources
    assert policy.opinion is None
    policy.safety.check_decision(LeavePool(PoolId(b"p" * 32)))


def test_everything_can_be_set(rules: Path) -> None:
    policy = settings_of(
        rules,
        """
        [governance]
        models = ["unanimous=own_node_rules:Unanimous"]
        evaluators = ["fair=own_node_rules:judge"]
        opinion = "own_node_rules:opinion"
        [admission]
        default = "token"
        rules = ["friends=own_node_rules:admit"]
        [trust]
        default = 0.3
        half_life_s = 60
        learn = "all"
        join_threshold = 0.5
        [safety]
        cpu = 2
        memory_mb = 512
        network_requests = 0
        allow = ["LeavePool", "InvokeTool"]
        deny = ["LeavePool"]
        """,
    )
    assert (policy.trust.default, policy.trust.half_life_s, policy.trust.learn) == (0.3, 60, "all")
    assert policy.opinion is not None
    policy.safety.check_decision(InvokeTool("x"))
    with pytest.raises(NotAuthorised):
        policy.safety.check_decision(LeavePool(PoolId(b"p" * 32)))
    assert not policy.safety.resources.allows(3, 0)
    with pytest.raises(LimitExceeded, match="not allowed"):
        policy.safety.resources.budget().spend()
    assert admission_rule("friends")
    assert knows_rule("fair")
    assert registered_model("unanimous")


def test_an_empty_list_of_allowed_kinds_allows_nothing(tmp_path: Path) -> None:
    policy = settings_of(tmp_path, "[safety]\nallow = []\n")
    with pytest.raises(NotAuthorised):
        policy.safety.check_decision(InvokeTool("x"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[trust]\ndefault = nan\n", "line 2: trust.default"),
        ("[trust]\nrate = 0.0\n", "line 2: trust.rate"),
        ("[trust]\nhalf_life_s = inf\n", "line 2: trust.half_life_s"),
        ("[trust]\nlearn = 'ours'\n", "line 2: trust.learn: 'ours' is none of own, all, off"),
        ("[safety]\ncpu = -1.0\n", "line 2: safety.cpu"),
        ("[safety]\ncpu = nan\n", "line 2: safety.cpu"),
        ("[safety]\nmemory_mb = 1e300\n", "line 2: safety.memory_mb"),
        ("[safety]\nnetwork_requests = 1.5\n", "line 2: safety.network_requests"),
        ("[safety]\nallow = ['SendMesage']\n", "is no kind of decision; did you mean SendMessage"),
        ("[safety]\ndeny = ['*']\n", "is no kind of decision"),
        ("[admission]\nrules = ['friends']\n", "expected NAME=module:function"),
        ("[governance]\nopinion = 'x'\n", "expected module:function"),
        ("[governance]\nopinion = 'no_such_module_x:y'\n", "cannot import no_such_module_x"),
        ("[governance]\nopinion = 'own_node_rules:number'\n", "that can be called"),
        ("[governance]\nopinion = 'own_node_rules:nothing'\n", "that can be called"),
        ("[governance]\nmodels = ['m=own_node_rules:admit']\n", "no GovernanceModel"),
        (
            "[admission]\nrules = ['a=own_node_rules:admit', 'a=own_node_rules:judge']\n",
            "another admission",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_what_was_expected(rules: Path, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what.replace("*", r"\*")):
        settings_of(rules, text)


def test_the_generated_file_documents_every_key_of_the_policies() -> None:
    text = example_file()
    for line in (
        '#allow = ["*"]',
        "#half_life_s = 0.0",
        "#network_requests = -1",
        '#learn = "own"',
        "#join_threshold = 0.0",
    ):
        assert f"\n{line}\n" in text
