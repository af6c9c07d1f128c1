"""A process that opens many links and then says nothing more. Its parent stops it with SIGSTOP.

python tests/network/attack_silent.py CONNECTIONS ADDRESS…
"""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack

import trio
from attack_wire import Attacker


async def main(connections: int, addresses: list[str]) -> None:
    async with AsyncExitStack() as stack:
        for number in range(connections):
            attacker = await stack.enter_async_context(Attacker.open(5000 + number))
            await attacker.link(addresses[number % len(addresses)])
        print("linked", flush=True)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), sys.argv[2:])
