"""A small server that speaks the protocol to a client under test, and misbehaves when asked to.

with FakeServer() as server:
    server.plan = lambda job: job.say("status", phase="RUNNING")
    server.answers["GET", "/v1/info"] = lambda request: request.wfile.write(b"garbage")
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from insitu.remote.wire import container
from insitu.remote.wire.values import encode_all

HEARTBEAT_S = 0.05


def packed(**values):
    """A container as a result is."""
    header, tensors = encode_all(values)
    return container.pack({"kind": "result", **header}, tensors)


class FakeJob:
    def __init__(self, id, request=b""):
        self.id = id
        self.request = request
        self.events = []
        self.changed = threading.Condition()
        self.values = {}
        self.given = {}
        self.result = b""
        self.drops = set()
        self.is_cancelled = False

    def say(self, kind, **told):
        with self.changed:
            self.events.append((kind, {"time": 1742224219.417 + len(self.events), **told}))
            self.changed.notify_all()
        return self

    def status(self, *phases):
        for phase in phases:
            self.say("status", phase=phase, text="")
        return self

    def end(self, phase="COMPLETED", result=None, fault=None, **told):
        self.status(phase)
        if result is not None:
            self.result = result
            sha256 = told.pop("sha256", hashlib.sha256(result).hexdigest())
            told.setdefault("result", {"bytes": len(result), "sha256": sha256})
            if len(result) <= 65_536:
                told.setdefault("payload", base64.b64encode(result).decode())
        return self.say("end", **{"phase": phase, "fault": fault, "result": None, **told})

    def ask(self, number, index, payload, timeout_s=10):
        """A local part: the values down, the answer back."""
        self.values[number] = payload
        inline = {}
        if len(payload) <= 65_536:
            inline["payload"] = base64.b64encode(payload).decode()
        self.say("local", number=number, index=index, bytes=len(payload), **inline)
        with self.changed:
            self.changed.wait_for(lambda: number in self.given or self.is_cancelled, timeout_s)
            return self.given.get(number)

    def cancel(self):
        with self.changed:
            is_over = any(kind == "end" for kind, _ in self.events)
            self.is_cancelled = True
            self.changed.notify_all()
        if not is_over:
            self.end("CANCELLED")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self):
        super().setup()
        self.server.fake.sockets.add(self.connection)

    def log_message(self, *_):
        pass

    def handle(self):
        try:
            super().handle()
        except (ConnectionError, OSError, ValueError):
            self.close_connection = True

    def answer(self, status, body=b"", headers=None):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def raw(self, data):
        """Bytes as they are, and no more."""
        self.wfile.write(data)
        self.close_connection = True

    def refuse(self, status, what="no.", why="it is a test.", next="go on.", headers=None):
        self.answer(status, {"what": what, "why": why, "next": next}, headers)

    def serve(self):
        fake = self.server.fake
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        path = self.path.partition("?")[0]
        with fake.lock:
            fake.asked.append((self.command, path, dict(self.headers), self.body))
        own = fake.answers.get((self.command, path))
        if own is None:
            own = next(
                (
                    act
                    for (method, known), act in fake.answers.items()
                    if method == self.command and re.fullmatch(known, path)
                ),
                None,
            )
        if own is not None and own(self) is not NotImplemented:
            return
        self.route(fake, path)

    do_GET = do_POST = do_DELETE = serve

    def route(self, fake, path):
        if self.command == "POST" and path == "/v1/jobs":
            job = fake.accept(self.headers.get("Idempotency-Key"), self.body)
            return self.answer(202, {"id": job.id, "phase": "RECEIVED"})
        if path in fake.facts:
            return self.answer(200, fake.facts[path])
        if path == "/v1/jobs":
            rows = [{"id": id, "phase": "RUNNING", "model": "m", "created": 1.0, "ended": None}
                    for id in reversed(fake.jobs)]  # fmt: skip
            return self.answer(200, {"jobs": rows})
        found = re.fullmatch(r"/v1/jobs/([^/]+)(/.*)?", path)
        job = fake.jobs.get(found[1]) if found else None
        if job is None:
            return self.refuse(404, "this server has no such job.")
        return self.of_job(job, found[2] or "")

    def of_job(self, job, rest):
        if self.command == "DELETE":
            job.cancel()
            return self.answer(202, {"id": job.id})
        if rest == "":
            return self.answer(200, {"id": job.id, "phase": "RUNNING", "model": "m"})
        if rest == "/events":
            return self.stream(job)
        if rest == "/result":
            return self.result(job)
        number = int(rest.removeprefix("/local/"))
        if self.command == "GET":
            return self.answer(200, job.values[number])
        with job.changed:
            if number in job.given:
                return self.refuse(409, "it is answered.")
            job.given[number] = self.body
            job.changed.notify_all()
        return self.answer(204)

    def result(self, job):
        begin = 0
        if told := self.headers.get("Range"):
            begin = int(re.fullmatch(r"bytes=(\d+)-", told)[1])
        of = len(job.result)
        headers = {"Content-Range": f"bytes {begin}-{of - 1}/{of}"} if begin else {}
        self.answer(206 if begin else 200, job.result[begin:], headers)

    def stream(self, job):
        at = int(self.headers.get("Last-Event-ID") or 0)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while not self.server.fake.is_closing:
            with job.changed:
                news = job.events[at:]
                if not news:
                    job.changed.wait(HEARTBEAT_S)
            if not news:
                self.chunk(b": here\n\n")
            for kind, told in news:
                at += 1
                values = self.follows(job, kind, told)
                data = json.dumps(told if values is None else {**told, "follows": True})
                text = f"id: {at}\nevent: {kind}\ndata: {data}\n\n".encode()
                self.chunk(text + (values or b""))
                if at in job.drops:
                    job.drops.discard(at)
                    self.close_connection = True
                    return
                if kind == "end":
                    self.wfile.write(b"0\r\n\r\n")
                    return

    def follows(self, job, kind, told):
        """The values that come behind an event, where server and client want that."""
        wanted = "application/x-insitu-events" in self.headers.get("Accept", "")
        if kind != "local" or "payload" in told or not (wanted and self.server.fake.follows):
            return None
        return job.values[told["number"]]

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()


class Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        pass


class FakeServer:
    def __init__(self):
        self.asked = []
        self.answers = {}
        self.follows = False
        self.jobs = {}
        self.by_key = {}
        self.facts = {
            "/v1/info": {"protocol": 1, "insitu": "0.1.0", "trust": "self", "python": "3.11",
                         "limits": {"request_bytes": 2**26}},
            "/v1/models": [{"name": "demo", "state": "ready", "known_as": ["insitu/demo"],
                            "kind": "LanguageModel", "bytes": 5 * 2**20, "jobs": 1},
                           {"name": "gpt2", "state": "absent", "known_as": []}],
            "/v1/env": {"torch": "1.0.0", "insitu": "0.1.0", "strange": "9"},
            "/v1/whoami": {"name": "ada\x1b[2J", "scopes": ["run"], "expires": None},
        }  # fmt: skip
        self.plan = lambda job: job.status("RECEIVED", "APPROVED", "RUNNING").end(
            result=packed(x=1)
        )
        self.lock = threading.Lock()
        self.sockets = set()
        self.is_closing = False
        self.listener = Listener(("127.0.0.1", 0), Handler)
        self.listener.fake = self
        self.port = self.listener.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.threads = [threading.Thread(target=self.listener.serve_forever, args=(0.02,))]
        self.threads[0].start()

    def accept(self, key, body):
        with self.lock:
            if key in self.by_key:
                return self.by_key[key]
            id = f"job-{len(self.jobs)}"
            job = self.by_key[key] = self.jobs[id] = FakeJob(id, body)
        thread = threading.Thread(target=self.carry_out, args=(job,))
        self.threads.append(thread)
        thread.start()
        return job

    def carry_out(self, job):
        try:
            self.plan(job)
        except Exception as error:  # of the test itself: the client shall not wait for it
            job.end("LOST")
            raise AssertionError("a test's plan failed") from error

    def paths(self, method):
        return [path for one, path, *_ in self.asked if one == method]

    def close(self):
        self.is_closing = True
        self.listener.shutdown()
        self.listener.server_close()
        for job in self.jobs.values():
            job.cancel()
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def dripping(piece, seconds):
    """An answer that sends the same bytes over and over."""

    def act(request):
        until = time.monotonic() + seconds
        while time.monotonic() < until and not request.server.fake.is_closing:
            request.wfile.write(piece)
        request.close_connection = True

    return act
