"""A small chat server that does what a request tells it to, in a thread or as a process of its own."""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, data, **headers):
        body = json.dumps(data).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.path == "/health":
            self.send(self.server.health, {})
        elif self.path == "/v1/models":
            self.send(200, {"data": [{"id": "stub"}]})
        elif self.path == "/version":
            self.send(200, {"version": "1.2", "environment": dict(os.environ)})
        else:
            self.send(404, {})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append(asked)
        do = asked.get("do", "answer")
        if isinstance(do, int):
            self.send(do, {"error": {"message": f"stub says {do}"}}, Location="http://127.0.0.1:9/v1/chat/completions")
            return
        if do == "hang up":
            self.close_connection = True
            return
        if do == "die":
            os._exit(7)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        if do == "torn":  # the length of a piece is announced, and then there is less
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"100\r\ndata: ")
            self.close_connection = True
            return
        self.end_headers()
        self.close_connection = True
        self.piece({"role": "assistant", "content": ""})
        time.sleep(asked.get("wait", 0))
        if do == "error":
            self.event({"error": {"message": "out of memory"}})
            return
        if do == "gibberish":
            self.wfile.write(b"data: {\n\n")
            return
        if do != "silent":
            self.piece({"content": "a"})
            self.piece({"content": "b"})
        if do == "break":  # no end, neither of the stream nor of the answer
            return
        self.piece({}, finish_reason="stop")
        if do != "no usage":
            self.event({"choices": [], "usage": {"prompt_tokens": 100 + asked["max_tokens"], "completion_tokens": 2,
                                                 "total_tokens": 0}})  # fmt: skip
        self.wfile.write(b"data: [DONE]\n\n")

    def piece(self, delta, finish_reason=None):
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def event(self, data):
        known = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "stub"}
        self.wfile.write(f"data: {json.dumps(known | data)}\n\n".encode())
        self.wfile.flush()


class Stub(ThreadingHTTPServer):
    """``asked`` is what came in; ``url`` where to send it."""

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.asked, self.lock, self.health = [], threading.Lock(), 200
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # clients that go away are part of the tests

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()


STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); x = b'x' * (64 << 20); time.sleep(600)"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--health", type=int, default=200)
    parser.add_argument(
        "--child", action="store_true", help="start a process in a group of its own that does not want to end"
    )
    given = parser.parse_args()
    if given.child:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", STUBBORN], preexec_fn=os.setpgrp)
    server = Stub(given.port)
    server.health = given.health
    server.serve_forever()


if __name__ == "__main__":
    main()
