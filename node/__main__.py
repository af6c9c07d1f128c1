"""`python node …` from a checkout: the command line without an installation.

Knows: where the checkout's packages stand. Must not know: anything else.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
for folder in (_HERE, _HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from converge_node.cli import main  # noqa: E402 - the path must be set first

main()
