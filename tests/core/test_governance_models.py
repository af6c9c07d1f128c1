"""Governance models: who decides under each, and which terms are refused because they could decide twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from pool_kit import Pool, feed, rejected

from converge_p2p.core import governance, limits
from converge_p2p.core.codec import decode, encode
from converge_p2p.core.errors import CodecError, Conflict, LocalError
from converge_p2p.core.governance import Choice, DisputeContext, GovernanceModel, Threshold, rules_for
from converge_p2p.core.governance.custom import UnknownModel, forget_model
from converge_p2p.core.governance.formula import encode_formula
from converge_p2p.core.governance.models import Ruleset, compile_rules
from converge_p2p.core.model.pool import (
    AdmissionKind,
    AssignmentRule,
    GovernanceKind,
    ModelTerms,
    PoolPolicy,
    PoolSpec,
)
from converge_p2p.core.types import PublicKey

PEOPLE = {name: PublicKey(bytes([number]) * 32) for number, name in enumerate("abcdefgh", start=1)}
EVERYBODY = tuple(PEOPLE.values())


def who(names: str) -> set[PublicKey]:
    return {PEOPLE[name] for name in names}


def rules(model: GovernanceModel, electors: str = "", **changes: Any) -> Ruleset:
    return rules_for(model, names=PEOPLE, electors=list(electors), **changes)


def decide(ruleset: Ruleset, groups: str) -> list[bool]:
    return [ruleset.accept.satisfied_by(who(group)) for group in groups.split()]


def spec(electors: int = 4, **terms: Any) -> PoolSpec:
    terms.setdefault("governance", GovernanceKind.DEMOCRATIC)
    return PoolSpec("p", b"n" * 16, electors=EVERYBODY[:electors], **terms)


@pytest.fixture
def registered() -> Iterator[str]:
    yield "mine"
    forget_model("mine")


# ---------------------------------------------------------------- democratic


@pytest.mark.parametrize(("electors", "faults", "need"), [(4, 1, 3), (3, 1, 3), (7, 2, 5), (5, 0, 3), (2, 1, 2)])
def test_a_democratic_quorum_grows_with_the_electors_that_may_lie(electors: int, faults: int, need: int) -> None:
    ruleset = compile_rules(spec(electors, faults=faults))
    assert ruleset.faults == faults
    assert ruleset.accept == Threshold.flat(need, EVERYBODY[:electors])
    assert ruleset.grant == ruleset.endorse == ruleset.epoch == ruleset.accept
    with pytest.raises(CodecError, match=f"unsafe.*grant.*accept.*more than {faults} are needed"):
        compile_rules(spec(electors, faults=faults, quorum=need - 1))


def test_trusted_electors_make_a_smaller_quorum_safe() -> None:
    # three of four electors must share the one that never lies, or two others
    with pytest.raises(CodecError, match="unsafe"):
        compile_rules(spec(5, faults=1, quorum=3))
    pair = Threshold.all_of(PEOPLE["a"], Threshold.flat(1, who("bcd")))
    model = governance.Custom(who=pair, faults=2, trusted=("a",))
    assert decide(rules(model), "ab abcd bcd a") == [True, True, False, False]
    with pytest.raises(CodecError, match="share only 1"):
        rules(replace(model, trusted=()))


def test_endorsing_is_left_out_only_if_electors_and_workers_are_trusted_and_nothing_is_promised_beforehand() -> None:
    trusting = PoolPolicy(trusted_workers=True)
    assert compile_rules(spec(policy=trusting)).endorse is None
    assert compile_rules(spec(policy=trusting, faults=1)).endorse is not None
    assert compile_rules(spec(policy=replace(trusting, fast_path=True))).endorse is not None
    assert rules(governance.Empirical(), "abc", policy=trusting).endorse is not None
    assert compile_rules(spec(1)).endorse is None


# ---------------------------------------------------------------- dictatorial


def test_a_leader_alone_decides_alone() -> None:
    ruleset = rules(governance.Dictatorial())
    assert decide(ruleset, "a b") == [True, False]
    assert (ruleset.deciders, ruleset.endorse) == ((), None)
    assert rules(governance.Dictatorial(leader="b")).accept.electors == who("b")


def test_with_a_successor_either_decides_and_a_quorum_records_it() -> None:
    ruleset = rules(governance.Dictatorial(leader="b", successor="a"), "cde")
    assert decide(ruleset, "bac bcd acd cde ba abcde") == [True, True, True, False, False, True]
    assert ruleset.deciders == (PEOPLE["b"], PEOPLE["a"])
    assert ruleset.grant == ruleset.endorse == ruleset.epoch == ruleset.accept


def test_a_leader_and_a_successor_that_could_decide_apart_are_refused() -> None:
    with pytest.raises(CodecError, match="unsafe"):
        rules(governance.Dictatorial(leader="a", successor="b", quorum=2), "cde")
    for terms in ({"successor": PEOPLE["a"]}, {"leader": PEOPLE["a"], "successor": PEOPLE["a"]}):
        with pytest.raises(CodecError, match="names its leader"):
            compile_rules(spec(governance=GovernanceKind.DICTATORIAL, model=ModelTerms(**terms)))


# ---------------------------------------------------------------- bicameral


def test_both_chambers_must_agree() -> None:
    ruleset = rules(governance.Bicameral(first=("a", "b", "c"), second=("d", "e")))
    assert decide(ruleset, "abde abd abc de abcde bcde") == [True, False, False, False, True, True]


def test_a_tie_breaker_decides_with_one_chamber() -> None:
    model = governance.Bicameral(first=("a", "b", "c"), second=("d", "e", "f"), tie_breaker="g")
    assert decide(rules(model), "abg deg abde ab g adg") == [True, True, True, False, False, False]


def test_a_tie_breaker_that_may_lie_is_refused_unless_it_is_trusted() -> None:
    model = governance.Bicameral(first=("a", "b", "c", "h"), second=("d", "e", "f"), tie_breaker="g", faults=1)
    with pytest.raises(CodecError, match="share only 1"):
        rules(model)
    assert not rules(replace(model, trusted=("g",))).provisional


def test_one_chamber_may_stay_below_a_majority_if_the_other_keeps_them_together() -> None:
    assert rules(governance.Bicameral(first=("a", "b", "c"), second=("d", "e", "f"), quorums=(2, 1)))
    with pytest.raises(CodecError, match="unsafe"):
        rules(governance.Bicameral(first=("a", "b", "c", "g"), second=("d", "e", "f"), quorums=(2, 1)))


# ---------------------------------------------------------------- veto and empirical


def test_a_veto_pool_decides_like_a_democratic_one_and_names_who_may_deny() -> None:
    ruleset = rules(governance.Veto(vetoers=("g", "a"), window_ms=700, silence_denies=True), "abc")
    assert ruleset.accept == rules(governance.Democratic(), "abc").accept
    assert ruleset.veto is not None
    assert (ruleset.veto.vetoers, ruleset.veto.window_ms, ruleset.veto.silence_denies) == (who("ga"), 700, True)
    assert rules(governance.Democratic(), "abc").veto is None
    with pytest.raises(CodecError, match="vetoer"):
        compile_rules(spec(governance=GovernanceKind.VETO))


def test_an_empirical_pool_decides_by_weight_above_half_and_what_liars_can_weigh() -> None:
    ruleset = rules(governance.Empirical(weights={"a": 5, "b": 3}, speculative=3), "abcd")
    assert decide(ruleset, "ab ac acd bcd a") == [True, True, True, False, False]
    assert ruleset.speculative == 3
    ruleset = rules(governance.Empirical(weights={"a": 5, "b": 3, "c": 3, "d": 3}, faults=1))
    assert ruleset.accept.need == (14 + 5) // 2 + 1 == 10
    assert decide(ruleset, "abc abd bcd ab") == [True, True, False, False]
    with pytest.raises(CodecError, match="unsafe"):
        rules(governance.Empirical(weights={"a": 5, "b": 3, "c": 3, "d": 3}, faults=1, quorum=8))


@pytest.mark.parametrize("electors", range(1, 32))
@pytest.mark.parametrize("faults", [0, 1, 3])
def test_weights_of_any_kind_are_safe_at_the_default(electors: int, faults: int) -> None:
    if faults >= electors:
        return
    keys = tuple(PublicKey(bytes([number]) * 32) for number in range(electors))
    weights = tuple(1 + 7919 * number**3 % 1000 for number in range(electors))
    terms = ModelTerms(weights=weights, speculative=1)
    pool = PoolSpec("p", bytes(16), GovernanceKind.EMPIRICAL, keys, faults=faults, model=terms)
    heavy = sum(sorted(weights, reverse=True)[:faults])
    if (sum(weights) + heavy) // 2 + 1 > sum(weights):
        return
    assert compile_rules(pool).accept.need == (sum(weights) + heavy) // 2 + 1


# ---------------------------------------------------------------- custom


class SecondThoughts(GovernanceModel):
    """Everybody must agree, and a question is answered by the option that stands first among those with a quorum."""

    def formula(self, electors: tuple[PublicKey, ...], faults: int) -> Threshold:
        return Threshold.flat(len(electors), electors)

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        if len(context.ballots) < len(context.electors):
            return None
        return max(context.options, key=lambda option: (len(context.voters_for(option)), option))


class Cast(GovernanceModel):
    """A majority of the votes cast: the classic mistake."""

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        for option in context.options:
            if 2 * len(context.voters_for(option)) > len(context.ballots):
                return option
        return None


class Latest(GovernanceModel):
    """Whatever was heard last."""

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        return next(reversed(list(context.ballots.values())), None)


class Loose(GovernanceModel):
    """Anybody decides."""

    def formula(self, electors: tuple[PublicKey, ...], faults: int) -> Threshold:
        return Threshold.flat(1, electors)


class Broken(GovernanceModel):
    """Fails, but not always."""

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        if len(context.ballots) > 2:
            raise KeyError("lost")
        return None


class Elsewhere(GovernanceModel):
    """Answers what nobody asked."""

    def resolve_dispute(self, context: DisputeContext) -> Choice | None:
        return "never"


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (Cast(), "stability"),
        (Latest(), "determinism"),
        (Loose(), "intersection"),
        (Broken(), "failure: it raised KeyError"),
        (Elsewhere(), "outcome"),
    ],
)
def test_a_model_that_contradicts_itself_is_found_and_refused(model: GovernanceModel, kind: str) -> None:
    report = governance.check_model(model, EVERYBODY[:4])
    assert not report.sound
    assert any(problem.startswith(kind) for problem in report.problems)
    assert governance.check_model(model, EVERYBODY[:4]) == report
    with pytest.raises(LocalError, match="refused"):
        governance.register_model("bad", model, electors=EVERYBODY[:4])
    with pytest.raises(UnknownModel):
        compile_rules(spec(governance=GovernanceKind.CUSTOM, model=ModelTerms(custom="bad")))


@pytest.mark.parametrize("faults", [0, 1, 2])
@pytest.mark.parametrize("electors", [1, 4, 7])
def test_the_built_in_answer_is_sound(electors: int, faults: int) -> None:
    if faults < electors:
        assert governance.check_model(GovernanceModel(), EVERYBODY[:electors], faults=faults, tries=60).problems == ()


def test_liars_are_told_apart_only_if_the_formula_counts_on_them() -> None:
    everybody_of_three = SecondThoughts()
    assert governance.check_model(everybody_of_three, EVERYBODY[:3], tries=60).sound
    # one liar among all, and the model reads every ballot: two nodes get two answers
    found = governance.check_model(everybody_of_three, EVERYBODY[:3], faults=1).problems
    assert [problem.partition(":")[0] for problem in found] == ["agreement"]


def test_a_registered_model_is_named_by_a_pool_and_its_formula_stands_in_the_terms(registered: str) -> None:
    model = SecondThoughts()
    with pytest.raises(LocalError, match="not registered"):
        rules(model, "abc")
    governance.register_model(registered, model)
    governance.register_model(registered, model)
    with pytest.raises(Conflict):
        governance.register_model(registered, GovernanceModel())
    for named in (model, governance.Custom(name=registered)):
        ruleset = rules(named, "abc")
        assert ruleset.model is model
        assert decide(ruleset, "abc ab") == [True, False]
    terms = governance.Custom(name=registered).founding(EVERYBODY[:3], EVERYBODY[0], PEOPLE.__getitem__).model
    assert (terms.custom, terms.formula) == (registered, encode_formula(model.formula(EVERYBODY[:3], 0)))
    # the formula is enough to check a proof, on a machine that knows nothing of the model
    forget_model(registered)
    there = spec(3, governance=GovernanceKind.CUSTOM, model=terms)
    assert decide(compile_rules(there, disputes=False), "abc ab") == [True, False]
    with pytest.raises(UnknownModel):
        compile_rules(there)
    governance.register_model(registered, model, tries=1)
    # a pool may leave the formula to the model, too
    assert decide(
        compile_rules(spec(3, governance=GovernanceKind.CUSTOM, model=ModelTerms(custom=registered))), "abc ab"
    ) == [
        True,
        False,
    ]


def test_a_pool_of_a_model_that_is_not_here_is_refused_without_blame(registered: str) -> None:
    pool = Pool(governance=GovernanceKind.CUSTOM, model=ModelTerms(custom=registered))
    with pytest.raises(UnknownModel, match="'mine' is not registered here"):
        compile_rules(pool.spec)
    assert rejected(feed(pool.replica(), [pool.genesis])) == ["unknown_model"]
    governance.register_model(registered, GovernanceModel())
    assert rejected(feed(pool.replica(), [pool.genesis])) == []


def test_a_formula_of_ones_own_is_checked_like_any_other() -> None:
    pairs = Threshold(3, ((2, PEOPLE["a"]), (1, Threshold.flat(2, who("bcd"))), (1, PEOPLE["b"])))
    with pytest.raises(CodecError, match="unsafe"):
        rules(governance.Custom(who=Threshold.any_of(Threshold.all_of(*who("ab")), Threshold.all_of(*who("cd")))))
    assert decide(rules(governance.Custom(who=pairs)), "ab acd bcd") == [True, True, False]
    with pytest.raises(CodecError, match="count every elector"):
        compile_rules(
            spec(
                4,
                governance=GovernanceKind.CUSTOM,
                model=ModelTerms(formula=encode_formula(Threshold.flat(2, who("abc")))),
            )
        )
    with pytest.raises(CodecError, match="formula, the name"):
        compile_rules(spec(4, governance=GovernanceKind.CUSTOM))
    with pytest.raises(CodecError):
        compile_rules(spec(4, governance=GovernanceKind.CUSTOM, model=ModelTerms(formula=b"\x80")))


# ---------------------------------------------------------------- disputes


def test_a_dispute_is_answered_by_the_formula_and_strangers_have_no_voice() -> None:
    ruleset = rules(governance.Dictatorial(leader="a", successor="b"), "cde")
    ballots: dict[PublicKey, Choice] = {PEOPLE["c"]: "x", PEOPLE["d"]: "x", PEOPLE["e"]: "x", PEOPLE["h"]: "x"}
    assert ruleset.resolve_dispute(("x", "y"), ballots, epoch=0, subject=b"s") is None
    ballots[PEOPLE["b"]] = "y"
    assert ruleset.resolve_dispute(("x", "y"), ballots, epoch=0, subject=b"s") is None
    ballots[PEOPLE["a"]] = "x"
    assert ruleset.resolve_dispute(("x", "y"), ballots, epoch=0, subject=b"s") == "x"


def test_a_model_is_told_the_weights_of_the_electors() -> None:
    told: list[DisputeContext] = []

    class Curious(GovernanceModel):
        def resolve_dispute(self, context: DisputeContext) -> Choice | None:
            told.append(context)
            return super().resolve_dispute(context)

    ruleset = replace(rules(governance.Empirical(weights={"a": 5}), "abc"), model=Curious())
    assert ruleset.resolve_dispute((b"1", b"2"), {PEOPLE["a"]: b"2"}, epoch=3, subject=b"s") == b"2"
    assert told[0].weights == {PEOPLE["a"]: 5, PEOPLE["b"]: 1, PEOPLE["c"]: 1}
    assert (told[0].electors, told[0].epoch, told[0].subject) == (EVERYBODY[:3], 3, b"s")


# ---------------------------------------------------------------- terms


def test_unsafe_terms_are_taken_if_the_founder_says_provisional() -> None:
    ruleset = rules(governance.Democratic(quorum=2, provisional=True), "abcd")
    assert ruleset.provisional
    assert ruleset.accept.need == 2
    assert not rules(governance.Democratic(quorum=3, provisional=True), "abcd").provisional


USED_BY = {
    "leader": GovernanceKind.DICTATORIAL,
    "successor": GovernanceKind.DICTATORIAL,
    "chambers": GovernanceKind.BICAMERAL,
    "chamber_quorums": GovernanceKind.BICAMERAL,
    "tie_breaker": GovernanceKind.BICAMERAL,
    "vetoers": GovernanceKind.VETO,
    "veto_window_ms": GovernanceKind.VETO,
    "silence_denies": GovernanceKind.VETO,
    "weights": GovernanceKind.EMPIRICAL,
    "speculative": GovernanceKind.EMPIRICAL,
    "formula": GovernanceKind.CUSTOM,
    "custom": GovernanceKind.CUSTOM,
}
SOMETHING: dict[str, Any] = {
    "leader": PEOPLE["a"],
    "successor": PEOPLE["b"],
    "chambers": ((PEOPLE["a"],), (PEOPLE["b"],)),
    "chamber_quorums": (0, 0),
    "tie_breaker": PEOPLE["a"],
    "vetoers": (PEOPLE["a"],),
    "veto_window_ms": 1,
    "silence_denies": True,
    "weights": (1, 1, 1, 1),
    "speculative": 1,
    "formula": encode_formula(Threshold.flat(3, EVERYBODY[:4])),
    "custom": "mine",
}


@pytest.mark.parametrize("name", SOMETHING)
@pytest.mark.parametrize("kind", GovernanceKind)
def test_terms_that_a_model_does_not_use_are_refused_and_none_is_forgotten(
    name: str, kind: GovernanceKind, registered: str
) -> None:
    governance.register_model(registered, GovernanceModel(), tries=1)
    terms = ModelTerms(**{name: SOMETHING[name]})
    why = ""
    try:
        compile_rules(spec(4, governance=kind, model=terms))
    except CodecError as error:
        why = str(error)
    assert (f"does not use {name!r}" in why) == (USED_BY[name] is not kind)


def test_terms_survive_their_bytes() -> None:
    terms = ModelTerms(**SOMETHING, trusted=(PEOPLE["c"],), provisional=True)
    policy = PoolPolicy(fast_path=True, assignment=AssignmentRule.AUCTION)
    pool = spec(
        4, model=terms, policy=policy, admission=AdmissionKind.VOUCHED, admission_need=2, admission_custom="guild"
    )
    assert PoolSpec.from_body(decode(encode(pool.to_body()))) == pool


@pytest.mark.parametrize(
    "bad",
    [
        ModelTerms(leader=PEOPLE["h"]),
        ModelTerms(leader=b"short"),
        ModelTerms(tie_breaker=PEOPLE["h"]),
        ModelTerms(trusted=(PEOPLE["h"],)),
        ModelTerms(trusted=(PEOPLE["b"], PEOPLE["a"])),
        ModelTerms(trusted=(PEOPLE["a"], PEOPLE["a"])),
        ModelTerms(chambers=((PEOPLE["a"],),)),
        ModelTerms(chambers=((PEOPLE["a"],), ())),
        ModelTerms(chambers=((PEOPLE["a"],), (PEOPLE["h"],))),
        ModelTerms(chambers=((PEOPLE["a"],), (PEOPLE["b"],)), chamber_quorums=(2, 1)),
        ModelTerms(chamber_quorums=(1,)),
        ModelTerms(vetoers=(PublicKey(b"short"),)),
        ModelTerms(vetoers=tuple(PublicKey(bytes([9, number]) * 16) for number in range(limits.VETOERS_MAX + 1))),
        ModelTerms(veto_window_ms=-1),
        ModelTerms(veto_window_ms=limits.VETO_WINDOW_MS_MAX + 1),
        ModelTerms(weights=(1, 1)),
        ModelTerms(weights=(1, 1, 1, 0)),
        ModelTerms(weights=(1, 1, 1, limits.FORMULA_WEIGHT_MAX + 1)),
        ModelTerms(speculative=limits.SPECULATIVE_MAX + 1),
        ModelTerms(formula=bytes(limits.FORMULA_BYTES_MAX + 1)),
        ModelTerms(custom="x" * (limits.NAME_BYTES_MAX + 1)),
    ],
)
def test_terms_out_of_bounds_are_refused_in_every_genesis(bad: ModelTerms) -> None:
    pool = spec(4, model=bad)
    with pytest.raises(CodecError):
        PoolSpec.from_body(decode(encode(pool.to_body())))


def test_every_field_of_the_terms_has_one_type() -> None:
    plain = spec().to_body()
    *rest, model, private = plain
    for index, item in enumerate(model):
        for junk in (None, 7.5, [7], ["x"], [[7]], "x", b"x", True, 7):
            if type(junk) is type(item) and junk not in ([7], ["x"], [[7]]):
                continue
            if index in (3, 8) and junk == [7]:
                continue
            changed = [*rest, [*model[:index], junk, *model[index + 1 :]], private]
            with pytest.raises(CodecError):
                PoolSpec.from_body(changed)
