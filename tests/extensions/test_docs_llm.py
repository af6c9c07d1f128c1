"""The program of the page on language models runs as it stands, against a server that speaks the protocol."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from model_server import model_server

PAGE = Path(__file__).resolve().parents[2] / "docs" / "llm.md"


def test_the_program_of_the_page_translates_a_word() -> None:
    (program,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    answers = [
        [{"action": "claim_task", "task": "t1"}],
        [{"action": "invoke_tool", "tool": "glossary", "params": {"text": "hi"}}],
        [{"action": "report_task", "task": "t1", "result_of": "glossary"}],
        *[[]] * 10,
    ]
    with model_server() as server:
        server.say(*(json.dumps({"decisions": each}) for each in answers))
        environment = {**os.environ, "MODEL_URL": f"{server.url}/v1", "MODEL_KEY": "secret"}
        run = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout == "salut\n"
        assert server.keys[0] == "Bearer secret"
