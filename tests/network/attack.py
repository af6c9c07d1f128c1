"""The attack: real nodes in processes of their own, and everything a stranger, a peer or a member might try on them.

    python tests/network/attack.py [--rounds N] [--only NAME]… [--json]

After each attack every victim must live and answer, what was decided must be as it was (for attacks from outside: not a
byte of the pool's frontier may differ), and memory and descriptors must be within the bounds below. At the end a fresh
task has to settle. Exit status 0 only if all that holds.

Knows: the attacks, the bounds, the report. Must not know: how an attack is made.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import attack_agents as agents
import attack_electors as electors
import attack_frames as frames
import attack_links as links
import attack_members as members
import attack_reach as reach
import trio
from attack_ground import Ground
from attack_rig import Battlefield, Outcome, Probe, in_thread

Attack = Callable[[Ground], Awaitable[int]]

OUTSIDE: Sequence[Attack] = (
    links.garbage_bytes,
    links.silent_handshakes,
    links.boundless_lengths,
    links.plaintext_impostor,
    links.connects_and_disconnects,
    links.stream_floods,
    links.window_overrun,
    links.multiplexer_floods,
    links.library_protocols,
    links.provider_records,
    links.gossip_garbage,
    links.gossip_control_floods,
    frames.broken_framing,
    frames.hostile_cbor,
    frames.unknown_pools,
    frames.flapping,
    frames.lying_frontiers,
    frames.request_floods,
    frames.junk_pools,
    frames.forged_operations,
    frames.invalid_signatures_in_bulk,
    frames.replays,
    frames.operations_of_strangers,
    frames.parked_floods,
    frames.gossiped_operations,
    frames.forged_messages,
    reach.reach_protocols,
    reach.relay_floods,
    reach.dials_at_others,
    agents.made_up_agents,
    agents.forged_agents,
    members.control_socket,
)
INSIDE: Sequence[Attack] = (
    members.silent_links,
    members.forks,
    members.rule_breakers,
    members.unknown_tasks,
    members.sybils,
    electors.motion_floods,
    electors.opinions_of_strangers,
    electors.votes_on_epochs,
    electors.future_and_past_epochs,
)

RSS_GROWTH_MB_MAX = 60.0
"""Memory over the baseline that a victim may keep after all attacks."""
PEAK_GROWTH_MB_MAX = 160.0
"""Memory over the baseline that a victim may use for a moment."""
ANSWER_S_MAX = 10.0
"""Longest time a request for the status may take under attack, on two shared cores."""
FDS_OVER_BASELINE_MAX = 4
FDS_BACK_S = 30.0
ATTACK_S = 240.0


def attacks_by_name() -> dict[str, Attack]:
    """Every attack by its name."""
    return {attack.__name__: attack for attack in (*OUTSIDE, *INSIDE)}


async def run_attack(ground: Ground, attack: Attack) -> Outcome:
    """Run one attack and look at what it did."""
    field, outside = ground.field, attack in OUTSIDE
    await in_thread(field.wait_calm)
    if attack in INSIDE:
        await in_thread(field.set_baseline)
    ground.remarks = []
    before, start = await in_thread(field.totals), time.monotonic()
    probe, sent = Probe(field), 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(probe.run)
        with trio.move_on_after(ATTACK_S) as scope:
            sent = await attack(ground)
        nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        ground.failed(f"the attack did not end in {ATTACK_S:.0f} s")
    seconds = time.monotonic() - start
    alive = await in_thread(field.healthy)
    if not alive:
        return Outcome(
            attack.__name__, sent, False, False, probe.slowest_s, probe.peak_mb, 0, 0, 0, 0, seconds, ground.remarks
        )
    rss_mb, fds = await _settle_down(field)
    after = await in_thread(field.totals)
    unchanged = await in_thread(field.decided_unchanged)
    if outside:
        unchanged = unchanged and await in_thread(field.frontier_unchanged)
    return Outcome(
        attack.__name__, sent, alive, unchanged, probe.slowest_s, probe.peak_mb, rss_mb, fds,
        after[0] - before[0], after[1] - before[1], seconds, [*ground.remarks, *probe.failed],
    )  # fmt: skip


async def _settle_down(field: Battlefield) -> tuple[float, int]:
    """Give the victims time to drop the attackers' connections."""
    deadline = time.monotonic() + FDS_BACK_S
    while True:
        rss_mb, fds = field.over_baseline()
        if fds <= FDS_OVER_BASELINE_MAX or time.monotonic() > deadline:
            return rss_mb, fds
        await trio.sleep(0.5)


def faults(outcome: Outcome) -> list[str]:
    """What about an outcome breaks a promise."""
    found = list(outcome.remarks)
    if not outcome.alive:
        found.append("a victim died or does not answer")
    if not outcome.unchanged:
        found.append("state changed that must not")
    if outcome.slowest_s > ANSWER_S_MAX:
        found.append(f"a status took {outcome.slowest_s:.1f} s; at most {ANSWER_S_MAX:.0f} allowed")
    if outcome.rss_mb > RSS_GROWTH_MB_MAX:
        found.append(f"memory grew by {outcome.rss_mb:.0f} MB; at most {RSS_GROWTH_MB_MAX:.0f} allowed")
    if outcome.peak_mb > PEAK_GROWTH_MB_MAX:
        found.append(f"memory peaked {outcome.peak_mb:.0f} MB higher; at most {PEAK_GROWTH_MB_MAX:.0f} allowed")
    if outcome.fds > FDS_OVER_BASELINE_MAX:
        found.append(f"{outcome.fds} descriptors more than before; at most {FDS_OVER_BASELINE_MAX} allowed")
    return found


async def campaign(
    folder: Path, attacks: Sequence[Attack], rounds: int, tell: Callable[[Outcome], None]
) -> tuple[list[Outcome], list[str], float, Counter[str]]:
    """Run attacks against fresh victims.

    Returns:
        The outcomes, what broke a promise, the victims' memory before in MB, and their counters at the end.
    """
    outcomes: list[Outcome] = []
    broken: list[str] = []
    field = Battlefield(folder)
    await in_thread(field.__enter__)
    try:
        ground = Ground(field, rounds)
        await ground.read_log()
        for attack in attacks:
            outcome = await run_attack(ground, attack)
            outcomes.append(outcome)
            tell(outcome)
            broken += [f"{outcome.name}: {fault}" for fault in faults(outcome)]
            if not outcome.alive:
                break
        else:
            try:
                await in_thread(field.honest_work)
            except Exception as error:
                broken.append(f"after all attacks a fresh task did not settle: {error}")
        counters = await in_thread(field.counters) if not outcomes or outcomes[-1].alive else Counter[str]()
        return outcomes, broken, field.baseline_mb(), counters
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(field.__exit__, None, None, None)


SHOWN_COUNTERS = (
    "violations", "peers_banned", "handshakes_given_up", "inbound_connection_failed", "inbound_stream_refused",
    "stream_window_overrun", "yamux_bad_header", "yamux_frame_too_long", "yamux_ping_flood", "yamux_stream_flood",
    "yamux_stray_flood", "gossip_streams_refused", "rejected", "announcements_refused", "sync_work_throttled",
    "gossip_work_throttled", "handler_errors", "stream_handler_errors",
)  # fmt: skip

HEAD = (
    f"{'attack':<28}{'sent':>7}{'s':>6}{'cpu s':>7}{'slowest':>9}{'peak MB':>9}{'MB':>7}{'fds':>5}{'log kB':>8}  state"
)


def line(outcome: Outcome) -> str:
    """One line of the report."""
    state = "unchanged" if outcome.unchanged else "CHANGED" if outcome.alive else "DEAD"
    return (
        f"{outcome.name:<28}{outcome.sent:>7}{outcome.seconds:>6.0f}{outcome.cpu_s:>7.1f}{outcome.slowest_s:>8.2f}s"
        f"{outcome.peak_mb:>+9.0f}{outcome.rss_mb:>+7.0f}{outcome.fds:>+5d}{outcome.log_kb:>8.0f}  {state}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description="Attack three real nodes, and see that they hold.")
    parser.add_argument("--rounds", type=int, default=1, help="multiplies how much each attack sends")
    parser.add_argument("--only", action="append", choices=sorted(attacks_by_name()), help="run only this attack")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    options = parser.parse_args(arguments)
    known = attacks_by_name()
    chosen = [known[name] for name in options.only or known]

    def tell(outcome: Outcome) -> None:
        if not options.json:
            print(line(outcome), flush=True)
            for fault in faults(outcome):
                print(f"    ! {fault}", flush=True)

    # how the attackers' own half of a broken connection feels about it is of no interest
    logging.disable(logging.CRITICAL)
    if not options.json:
        print(HEAD)
    with tempfile.TemporaryDirectory(prefix="converge-attack-") as folder:
        outcomes, broken, base_mb, counters = trio.run(campaign, Path(folder), chosen, options.rounds, tell)
    if options.json:
        document = {"ok": not broken, "baseline_mb": round(base_mb, 1), "broken": broken, "counters": counters}
        document["attacks"] = [dataclasses.asdict(outcome) for outcome in outcomes]
        print(json.dumps(document, indent=2))
    else:
        print(f"\nbaseline {base_mb:.0f} MB a node; {sum(outcome.sent for outcome in outcomes)} hostile things sent")
        print(", ".join(f"{name} {counters[name]}" for name in SHOWN_COUNTERS if counters[name]))
        print("\n".join(["BROKEN:", *broken]) if broken else "every promise held; a fresh task settled")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
