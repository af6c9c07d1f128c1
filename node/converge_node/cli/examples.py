"""An example for each command whose description holds none; the help of the command shows it.

Knows: command lines. Must not know: what they do. A test reads every one with the command's own parser.
"""

from __future__ import annotations

from typing import Final

EXAMPLES: Final = {
    "run": "--listen /ip4/0.0.0.0/tcp/4001 --handler translate=my_work:translate",
    "id": "-q",
    "status": "--json",
    "health": "--ready --json",
    "doctor": "--bundle support.zip",
    "metrics": "",
    "events": "--kind task --json",
    "logs": "--level debug --follow",
    "peers ls": "",
    "pool audit": "demo",
    "pool create": "demo --governance democratic --elector 3f0c11…",
    "pool invite": "demo --for 3f0c11… --valid 3600",
    "pool join": "demo --capability translate",
    "pool leave": "demo",
    "pool ls": "",
    "pool motions": "demo",
    "pool show": "demo",
    "pool vote": "demo 0c9aa1 yes",
    "pool vouch": "demo 3f0c11…",
    "agent checkpoints": "--json",
    "agent hosted": "",
    "agent ls": "--limit 10",
    "agent record": "indexer --out turns.ndjson",
    "agent replay": "turns.ndjson --agent my_agents:Indexer",
    "agent revoke": "",
    "agent show": "3f0c11…",
    "task cancel": "demo 81be02 --reason 'no longer needed'",
    "task cite": "demo 81be02 report.pdf --summary 'measured again'",
    "task dispute": "demo 81be02 --reason 'the sum is wrong'",
    "task evidence": "demo 81be02",
    "task explain": "demo 81be02",
    "task judge": "demo 81be02 approve",
    "task ls": "demo --state pending",
    "task pass": "demo 81be02",
    "task receipt": "demo 81be02 -o invoice-17.receipt",
    "task result": "demo 81be02 --output page.txt",
    "task show": "demo 81be02",
    "task submit": "demo translate --input text=hello --wait",
    "task veto": "demo 81be02 --reason 'not signed off'",
    "task watch": "demo 81be02 --timeout 60",
    "receipt verify": "invoice-17.receipt",
    "blob get": "blob:AAEC… --output film.mp4",
    "blob ls": "",
    "blob put": "report.pdf --sealed",
    "blob rm": "0c9aa1",
    "mesh invite": "--pool demo --topic acme/text --uses 3",
    "mesh ls": "",
    "mesh new": "swarm.key",
    "topic join": "acme/text --key-file text.key",
    "topic leave": "acme/text",
    "topic ls": "",
    "topic new-key": "text.key",
    "topic pub": "acme/text '{\"n\": 1}'",
    "topic sub": "acme/text --timeout 10",
    "join": "- < invitation.txt",
    "api token ls": "",
    "api token rm": "dashboard",
    "config paths": "",
    "config show": "",
    "config validate": "node.toml",
    "store info": "--json",
    "store verify": "/var/backups/node-1",
    "store backup": "/var/backups/node-1 --identity",
    "store restore": "/var/backups/node-1 --home ./n1",
    "store compact": "--left",
    "demo": "--tasks 60",
    "shutdown": "",
    "version": "",
}


def example_of(path: str) -> str:
    """Return the command line that the help of a command shows, or nothing."""
    found = EXAMPLES.get(path)
    return "" if found is None else f"converge-node {path} {found}".rstrip()
