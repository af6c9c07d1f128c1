"""The top round that a register remembers is the one that follows from its promises, in any order of arrival."""

from __future__ import annotations

import functools
import random

import pytest
from hypothesis import given, settings, strategies as st
from pool_kit import Pool, claim, feed
from test_any_order import Script, deliveries, run_pool

from converge_p2p.core.model.pool import PoolPolicy
from converge_p2p.core.oplog import operation as operation_module
from converge_p2p.core.oplog.bodies import LeaveBody, Token
from converge_p2p.core.replica import events as ev
from converge_p2p.core.view.fold import View
from converge_p2p.core.view.register import Register
from converge_p2p.core.view.tasks import TaskRegister


@pytest.fixture(autouse=True)
def _verify_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operation_module, "verify", functools.lru_cache(None)(operation_module.verify))


def top_by_definition(register: Register) -> Token | None:
    """The highest round of the present epoch that more than f electors granted, or that its granter opened alone."""
    now = register.now
    granted = sorted((token for token in register.top_granted.values() if token.epoch == now), reverse=True)
    faults, first = register.counting(now).rules.faults, Token(now, 0)
    if len(granted) > faults:
        return granted[faults]
    alone = isinstance(register, TaskRegister) and register.certified_id(first) is not None
    return first if alone else None


def registers_of(view: View) -> list[Register]:
    return [*view.registers.values(), *view.vetoes.registers.values(), *view.changes.values()]


@pytest.mark.no_cover
@given(st.integers(0, 2**32), st.booleans())
@settings(max_examples=150, deadline=None)
def test_the_top_round_follows_from_the_promises_at_every_moment(seed: int, fast_path: bool) -> None:
    script, order = Script(seed, PoolPolicy(max_retries=1, fast_path=fast_path)), random.Random(seed)
    replica = script.pool.replica()
    for batch in deliveries(script.write(25), order):
        for operation in batch:
            replica.handle(ev.Received((operation,)), ev.Now(0, 0))
            for register in registers_of(replica.view):
                assert register.top == top_by_definition(register)


@pytest.mark.parametrize("seed", range(12))
def test_so_it_does_where_a_working_pool_is_read_again(seed: int) -> None:
    pool, operations, _ = run_pool(seed)
    replica, found = pool.replica(), 0
    for batch in deliveries(operations, random.Random(seed)):
        replica.handle(ev.Received(batch), ev.Now(0, 0))
        for register in registers_of(replica.view):
            assert register.top == top_by_definition(register)
            found += register.top is not None
    assert found


def test_the_granter_of_the_fast_path_opens_the_first_round_only_while_its_submit_stands() -> None:
    pool = Pool(4, 1, faults=1, policy=PoolPolicy(fast_path=True))
    replica, submitter = pool.replica(), pool.electors[0]
    before = submitter.branch()
    task, submit = pool.submit()
    wanted = claim(pool.workers[0], task)
    feed(replica, [*pool.base, wanted, submit, pool.grant(0, task, 0, wanted)])
    register = replica.view.registers[task]
    assert register.top == Token(0, 0)
    feed(replica, [before.sign(LeaveBody())])
    assert register.submitted is None, "the submitter forked"
    assert register.top is None, "one of four electors, of which one may lie, opens no round"
