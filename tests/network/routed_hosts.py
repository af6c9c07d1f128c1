"""Hosts on a public network, and hosts behind routers that translate addresses: namespaces again.

Knows: `ip netns`, veth pairs, bridges, nftables. Must not know: what runs on the hosts.
Source: nft(8), RFC 4787 (what routers do). Public addresses are of TEST-NET-3. Needs root, iproute2 and nftables.

A router here does what most at home do: it rewrites the source of what goes out, and drops what comes in unasked. Each
has one host behind it, and all of these have the same private address, as at home.
"""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Literal, Self

from namespaces import ip

PUBLIC = "203.0.113"
PRIVATE_HOST, PRIVATE_ROUTER = "192.168.1.2", "192.168.1.1"

RULES = """
table inet router {
    chain outward {
        type nat hook postrouting priority srcnat;
        oifname "outside" masquerade
    }
    chain through {
        type filter hook forward priority filter; policy drop;
        iifname "inside" accept
        ct state established,related accept
    }
    chain to_itself {
        type filter hook input priority filter; policy drop;
        iifname "inside" accept
        ct state established,related accept
    }
}
"""


class RoutedHosts:
    """Hosts at one switch, some of them behind a router each."""

    def __init__(self, *places: Literal["public", "hidden"]) -> None:
        self._tag = f"cr{os.getpid()}"
        self._places = places
        self._switch = f"{self._tag}-switch"
        self._numbers = [host + 1 for host in range(len(places))]
        self._spaces: list[str] = []

    @property
    def count(self) -> int:
        """How many hosts there are."""
        return len(self._places)

    def is_hidden(self, host: int) -> bool:
        """Whether a host is behind a router."""
        return self._places[host] == "hidden"

    def name(self, host: int) -> str:
        """The namespace of a host."""
        return f"{self._tag}-{host}"

    def address(self, host: int) -> str:
        """The IPv4 address that a host has itself."""
        return PRIVATE_HOST if self.is_hidden(host) else self.seen_address(host)

    def seen_address(self, host: int) -> str:
        """The IPv4 address that others see a host at."""
        return f"{PUBLIC}.{self._numbers[host]}"

    def command(self, host: int) -> list[str]:
        """What to put before a command that is to run on a host."""
        return ["ip", "netns", "exec", self.name(host)]

    def __enter__(self) -> Self:
        try:
            self._add(self._switch)
            ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
            ip("-n", self._switch, "link", "set", "bridge", "up")
            for host in range(self.count):
                self._add(self.name(host))
                if self.is_hidden(host):
                    self._put_behind_router(host)
                else:
                    self._plug_in(self.name(host), f"port{host}", "eth0", self.seen_address(host))
        except BaseException:
            self._remove()
            raise
        return self

    def _add(self, space: str) -> None:
        ip("netns", "add", space)
        self._spaces.append(space)
        ip("-n", space, "link", "set", "lo", "up")

    def _plug_in(self, space: str, port: str, device: str, address: str) -> None:
        ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", device, "netns", space)
        ip("-n", self._switch, "link", "set", port, "master", "bridge")
        ip("-n", self._switch, "link", "set", port, "up")
        ip("-n", space, "address", "add", f"{address}/24", "dev", device)
        ip("-n", space, "link", "set", device, "up")

    def _put_behind_router(self, host: int) -> None:
        space, router = self.name(host), f"{self.name(host)}-router"
        self._add(router)
        self._plug_in(router, f"port{host}", "outside", self.seen_address(host))
        ip("-n", router, "link", "add", "inside", "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", router, "address", "add", f"{PRIVATE_ROUTER}/24", "dev", "inside")
        ip("-n", router, "link", "set", "inside", "up")
        ip("-n", space, "address", "add", f"{PRIVATE_HOST}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "route", "add", "default", "via", PRIVATE_ROUTER)
        inside = ["ip", "netns", "exec", router]
        subprocess.run([*inside, "sysctl", "-qw", "net.ipv4.ip_forward=1"], check=True, capture_output=True)
        subprocess.run([*inside, "nft", "-f", "-"], input=RULES, text=True, check=True, capture_output=True)

    def can_connect(self, host: int, address: str, port: int) -> bool:
        """Try whether a host can open a connection. Nothing of the project takes part."""
        attempt = f"import socket; socket.create_connection(({address!r}, {port}), 3).close()"
        done = subprocess.run(
            [*self.command(host), "python3", "-c", attempt], check=False, capture_output=True, timeout=30
        )
        return done.returncode == 0

    def move(self, host: int, number: int) -> None:
        """Give a public host another address."""
        assert not self.is_hidden(host)
        ip("-n", self.name(host), "address", "del", f"{self.seen_address(host)}/24", "dev", "eth0")
        self._numbers[host] = number
        ip("-n", self.name(host), "address", "add", f"{self.seen_address(host)}/24", "dev", "eth0")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        while self._spaces:
            subprocess.run(["ip", "netns", "del", self._spaces.pop()], check=False, capture_output=True)
