"""Several hosts on one machine: network namespaces, joined by two switches with one cable between them.

Knows: `ip netns`, veth pairs and bridges. Must not know: what runs on the hosts.
Source: ip-netns(8), veth(4). Needs root and Debian's iproute2. Everything is made in namespaces of its own, so that
nothing of the machine's network is touched, and ends with the block.
"""

from __future__ import annotations

import os
import subprocess
from types import TracebackType
from typing import Self

SUBNET = "10.77.0"


def ip(*arguments: str) -> None:
    """Run `ip`. Raises CalledProcessError with what it said."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Hosts:
    """`left` hosts at one switch and `right` hosts at another."""

    def __init__(self, left: int, right: int) -> None:
        self._tag = f"cv{os.getpid()}"
        self._sides = ["left"] * left + ["right"] * right
        self._switch = f"{self._tag}-switch"

    @property
    def count(self) -> int:
        """How many hosts there are."""
        return len(self._sides)

    def name(self, host: int) -> str:
        """The namespace of a host."""
        return f"{self._tag}-{host}"

    def address(self, host: int) -> str:
        """The IPv4 address of a host."""
        return f"{SUBNET}.{host + 1}"

    def command(self, host: int) -> list[str]:
        """What to put before a command that is to run on a host."""
        return ["ip", "netns", "exec", self.name(host)]

    def __enter__(self) -> Self:
        ip("netns", "add", self._switch)
        for side in ("left", "right"):
            ip("-n", self._switch, "link", "add", side, "type", "bridge")
            ip("-n", self._switch, "link", "set", side, "up")
        ip("-n", self._switch, "link", "add", "cable-left", "type", "veth", "peer", "name", "cable-right")
        for side in ("left", "right"):
            ip("-n", self._switch, "link", "set", f"cable-{side}", "master", side)
            ip("-n", self._switch, "link", "set", f"cable-{side}", "up")
        for host, side in enumerate(self._sides):
            self._plug_in(host, side)
        return self

    def _plug_in(self, host: int, side: str) -> None:
        name, port = self.name(host), f"port{host}"
        ip("netns", "add", name)
        ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("-n", self._switch, "link", "set", port, "master", side)
        ip("-n", self._switch, "link", "set", port, "up")
        ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")

    def cut(self) -> None:
        """Pull the cable between the switches: packets vanish, nobody is told."""
        ip("-n", self._switch, "link", "set", "cable-left", "down")

    def heal(self) -> None:
        """Plug the cable in again."""
        ip("-n", self._switch, "link", "set", "cable-left", "up")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for host in range(self.count):
            subprocess.run(["ip", "netns", "del", self.name(host)], check=False, capture_output=True)
        subprocess.run(["ip", "netns", "del", self._switch], check=False, capture_output=True)
