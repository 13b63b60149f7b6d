"""FAKE judge: a small HTTP server that speaks enough of OpenAI's API, for tests of what a judge
does wrong. The real one is vLLM's own server, in tests/ray/test_judge.py.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "the-key-of-the-judge-1"


class FakeJudge(ThreadingHTTPServer):
    """Answers by a command in the question: `verdict N`, `status CODE`, `say TEXT`, `slow`, `once
    CODE` (the first time), `cut`, `bytes`.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.questions: list[str] = []
        self.keys: set[str] = set()
        self.most_at_once = self.now = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: FakeJudge

    def log_message(self, *_: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.headers.get("authorization") != f"Bearer {KEY}":
            return self._send(401, {"error": "no key"})
        self._send(200, {"object": "list", "data": [{"id": "judge"}]})

    def do_POST(self) -> None:
        judge = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][0]["content"]
        command, _, rest = question.partition("<<")[2].partition(">>")[0].partition(" ")
        with judge.lock:
            judge.questions.append(question)
            judge.keys.add(self.headers.get("authorization", ""))
            is_first = judge.questions.count(question) == 1
            judge.now += 1
            judge.most_at_once = max(judge.most_at_once, judge.now)
        try:
            self._answer(command, rest, is_first)
        finally:
            with judge.lock:
                judge.now -= 1

    def _answer(self, command: str, rest: str, is_first: bool) -> None:
        if command == "slow":
            time.sleep(0.6)
        if command == "status" or (command == "once" and is_first):
            return self._send(int(rest), {"error": f"refused: {self.headers.get('authorization')}"})
        if command == "bytes":
            return self._send(200, b"\xff\xfe not JSON")
        text = {"say": rest.replace("\\n", "\n"), "verdict": f"Good.\nVerdict: {rest}"}.get(command)
        ending = "length" if command == "cut" else "stop"
        message = {"content": text or "Fine.\nVerdict: 5"}
        self._send(200, {"choices": [{"message": message, "finish_reason": ending}]})

    def _send(self, status: int, body: Any) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def running_judge() -> Iterator[FakeJudge]:
    judge = FakeJudge()
    thread = threading.Thread(target=lambda: judge.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield judge
    finally:
        judge.shutdown()
        judge.server_close()
