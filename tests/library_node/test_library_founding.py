"""Founding terms and names: an unknown agent id is never taken for a key, and contradictions are refused."""

from __future__ import annotations

from typing import Any

import pytest
from node_library_kit import who

from converge_p2p.core.errors import LocalError, NotFound
from converge_p2p.core.governance import Democratic, Dictatorial
from converge_p2p.core.model.pool import AdmissionKind
from converge_p2p.core.model.registry import IdentityRegistry
from converge_p2p.core.model.topic import Topic
from converge_p2p.core.types import PublicKey
from converge_p2p.node.founding import find_key, founding_terms

KNOWN, HEARD, STRANGER = who(1), who(2), who(3)


def find(text: str) -> PublicKey:
    registry = IdentityRegistry()
    registry.register(HEARD.id, HEARD.public_key)
    return find_key(text, [KNOWN.public_key], registry)


@pytest.mark.parametrize("identity", [KNOWN, HEARD], ids=["known", "heard of"])
def test_an_agent_id_that_is_known_names_its_key(identity: Any) -> None:
    assert find(identity.id) == identity.public_key
    assert find(identity.id.upper()) == identity.public_key


def test_the_digits_of_a_known_key_name_it() -> None:
    assert find(KNOWN.public_key.hex()) == KNOWN.public_key


@pytest.mark.parametrize("text", [STRANGER.id, STRANGER.public_key.hex(), "", "bob", "k" * 64])
def test_what_is_not_known_is_never_guessed_to_be_a_key(text: str) -> None:
    with pytest.raises(NotFound) as caught:
        find(text)
    assert "key:" in caught.value.hint


def test_an_unknown_key_is_taken_when_it_is_marked_as_one() -> None:
    assert find(f"key:{STRANGER.public_key.hex()}") == STRANGER.public_key


@pytest.mark.parametrize("digits", ["", "zz" * 32, "00" * 31, "00" * 33, "00" * 32, "ff" * 32])
def test_what_is_marked_as_a_key_and_is_none_is_refused(digits: str) -> None:
    with pytest.raises(LocalError, match="no public key"):
        find(f"key:{digits}")


def make(model: Any = None, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "founder": KNOWN.public_key,
        "key_of": find,
        "electors": [KNOWN.public_key],
        "whitelist": [],
        "topics": [],
        "task_types": [],
        "admission": AdmissionKind.OPEN,
        "policy": None,
    }
    return founding_terms("demo", model or Democratic(), **{**settings, **changes})


def test_lists_are_sorted_and_without_repeats_so_that_equal_terms_have_equal_bytes() -> None:
    keys = [HEARD.public_key, KNOWN.public_key, HEARD.public_key]
    spec = make(electors=keys, task_types=["b", "a", "b"], topics=[Topic("b"), Topic("a"), Topic("b")])
    spec.check()
    assert spec.electors == tuple(sorted(set(keys)))
    assert spec.task_types == ("a", "b")
    assert len(spec.topics) == 2
    assert make().nonce != make().nonce


def test_a_dictatorial_pool_has_one_leader() -> None:
    assert make(Dictatorial()).electors == (KNOWN.public_key,)
    with pytest.raises(LocalError, match="one elector"):
        make(Dictatorial(), electors=[KNOWN.public_key, HEARD.public_key])


def test_a_whitelist_without_the_admission_that_reads_it_is_refused() -> None:
    with pytest.raises(LocalError, match="admission is open"):
        make(whitelist=[HEARD.public_key])
    assert make(whitelist=[HEARD.public_key], admission=AdmissionKind.WHITELIST).whitelist == (HEARD.public_key,)
