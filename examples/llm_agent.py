"""A language model decides for an agent. A small server on this machine stands in for the model's provider.

Needs `pip install converge-p2p[llm]`. For a real model give `OpenAICompatibleChat` its address and key.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import trio

from converge_p2p import ActionPolicy, Node, SafetyPolicy, Task
from converge_p2p.extensions.llm import LLMAgent, OpenAICompatibleChat

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


class Model(BaseHTTPRequestHandler):
    """Claims every task that it is shown, and reports once it holds one."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        news = asked["messages"][-1]["content"]
        decided = []
        if '"yours": true' in news:
            decided = [{"action": "report_task", "task": "t1", "result": {"text": "salut"}}]
        elif '"t1"' in news:
            decided = [{"action": "claim_task", "task": "t1"}]
        message = {"role": "assistant", "content": json.dumps({"decisions": decided})}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "small", "choices": [choice]}
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


async def main(url):
    policy = SafetyPolicy(actions=ActionPolicy.named(["ClaimTask", "ReportTask", "ReleaseTask"]))
    async with Node(listen=LOCAL) as office, Node(listen=LOCAL, bootstrap=office.addresses) as worker:
        pool = await office.create_pool("words")
        await worker.join_pool(pool.id, timeout_s=60)
        provider = OpenAICompatibleChat(url, "small")
        await worker.host(LLMAgent(worker.id, provider, "You translate words into French."), safety=policy)
        handle = await pool.submit(Task("translate", {"text": "hi"}))
        with trio.fail_after(60):
            result = await handle.result()
        print(result.value["text"], "by the worker:", result.by == worker.id)


server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
threading.Thread(target=server.serve_forever, args=(0.05,)).start()
try:
    trio.run(main, f"http://127.0.0.1:{server.server_address[1]}/v1")
finally:
    server.shutdown()
    server.server_close()
