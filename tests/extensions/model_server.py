"""A real HTTP server on loopback that speaks the protocols of model providers, and says what a test told it to.

One thread; each request takes the next scripted answer. What was asked is kept.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Scripted:
    """One answer.

    Attributes:
        text: what the model says.
        status, headers: of an answer that is none.
        raw: the body as it stands, in place of a model's answer.
        cut: the connection ends after so many pieces of a stream.
        hold: the answer begins, and never ends.
    """

    text: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    cut: int | None = None
    hold: bool = False


class ModelServer:
    """What is asked and answered."""

    def __init__(self) -> None:
        self.script: list[Scripted] = []
        self.asked: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str] = []
        self.let_go = threading.Event()
        self.url = ""

    def say(self, *answers: str | Scripted) -> None:
        self.script += [Scripted(each) if isinstance(each, str) else each for each in answers]

    def told(self, index: int = -1) -> str:
        """What the user said last in a question."""
        content: str = self.asked[index]["messages"][-1]["content"]
        return content


@contextmanager
def model_server() -> Iterator[ModelServer]:
    state = ModelServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.asked.append(body)
            state.paths.append(self.path)
            state.keys.append(self.headers.get("x-api-key") or self.headers.get("authorization") or "")
            answer = state.script.pop(0) if state.script else Scripted(status=500, raw=b"nothing was scripted")
            anthropic = self.path.endswith("/messages")
            if answer.raw is not None or answer.status != 200:
                self._whole(answer.raw or b'{"error": {"message": "no"}}', answer)
            elif body.get("stream"):
                self._stream(_pieces(answer.text, anthropic), answer)
            else:
                self._whole(json.dumps(_message(answer.text, anthropic)).encode(), answer)

        def _whole(self, data: bytes, answer: Scripted) -> None:
            self.send_response(answer.status)
            for name, value in {"content-type": "application/json", **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, pieces: list[bytes], answer: Scripted) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.end_headers()
            for piece in pieces if answer.cut is None else pieces[: answer.cut]:
                self.wfile.write(piece)
                self.wfile.flush()
            if answer.hold:
                state.let_go.wait(60)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield state
    finally:
        state.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _message(text: str, anthropic: bool) -> dict[str, Any]:
    if anthropic:
        return {
            "id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
            "stop_sequence": None, "content": [{"type": "text", "text": text}],
            "usage": {"input_tokens": 3, "output_tokens": 5},
        }  # fmt: skip
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return {"id": "m", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def _pieces(text: str, anthropic: bool) -> list[bytes]:
    size = max(7, len(text) // 64)
    parts = [text[index : index + size] for index in range(0, len(text), size)]
    if anthropic:
        start = {**_message("", True), "content": [], "stop_reason": None}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": part}}
                for part in parts
            ),
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 5},
            },
            {"type": "message_stop"},
        ]
        return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        event = {"id": "m", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
        return f"data: {json.dumps(event)}\n\n".encode()

    return [*(chunk({"content": part}) for part in parts), chunk({}, "stop"), b"data: [DONE]\n\n"]
