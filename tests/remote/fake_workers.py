"""Workers without models: a request's header says what its job does.

{"kind": "request", "protocol": 1, "model": "demo", "do": [["log", "hello"], ["sleep", 0.1]]}
"""

import asyncio
import json

from insitu.remote.protocol import Ended, Fault, Local, Log, ModelState, Progress, Status, Token
from insitu.remote.wire import container
from insitu.remote.wire.header import read_header


class FakeWorkers:
    def __init__(self, models=("demo",), room=2, hang_on_cancel=False):
        self.names = models
        self.width = room
        self.hang_on_cancel = hang_on_cancel
        self.running = {}
        self.order = []
        self.most_at_once = 0
        self.answers = {}
        self.state = "ready"
        self.stopped = False

    async def start(self):
        pass

    async def stop(self):
        self.stopped = True

    def models(self):
        return [
            ModelState(name, self.state, known_as=(f"org/{name}",), jobs=len(self.running))
            for name in self.names
        ]

    def room(self, model):
        return self.width - sum(it == model for it, _ in self.running.values())

    async def run(self, task, told):
        cancelled = asyncio.Event()
        self.running[task.id] = (task.model, cancelled)
        task.result.touch(mode=0o600)
        self.order.append(task.id)
        self.most_at_once = max(self.most_at_once, len(self.running))
        header = await asyncio.to_thread(read_header, task.request.read_bytes())
        told(Status("RUNNING"))
        work = asyncio.ensure_future(self._work(task, told, header.get("do", [])))
        cancelling = asyncio.ensure_future(cancelled.wait())
        try:
            await asyncio.wait([work, cancelling], return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else Ended("CANCELLED")
        finally:
            work.cancel()
            cancelling.cancel()
            self.running.pop(task.id, None)

    async def _work(self, task, told, acts):  # noqa: C901 - a table of what jobs may do
        values = {}
        for name, *given in acts:
            match name:
                case "log":
                    told(Log(given[0], tuple(given[1:])))
                case "logs":
                    await self._many(given[0], lambda n: told(Log(f"line {n}")))
                case "lines":
                    text = "x" * given[1]
                    await self._many(given[0], lambda n, text=text: told(Log(text)))
                case "progresses":
                    await self._many(given[0], lambda n: told(Progress("at", n)))
                case "token":
                    told(Token(given[0], tuple(given[1])))
                case "sleep":
                    await asyncio.sleep(given[0])
                case "local":
                    values = await self._local(task, told, *given)
                case "fail":
                    return Ended("ERROR", Fault("IndexError", given[0], (("cell 4", 7, "block"),)))
                case "crash":
                    raise RuntimeError("a worker's secret")
                case "size":
                    task.result.write_bytes(b"\1" * given[0])
                    return Ended("COMPLETED")
        task.result.write_bytes(container.pack({"kind": "result", "values": values}))
        return Ended("COMPLETED")

    async def _many(self, number, tell):
        for n in range(number):
            tell(n)
            if n % 1000 == 999:
                await asyncio.sleep(0)

    async def _local(self, task, told, number, size):
        self.answers[task.id, number] = asyncio.get_running_loop().create_future()
        told(Local(number, 0, b"v" * size))
        payload = await self.answers[task.id, number]
        return {"got": len(payload)}

    async def cancel(self, job):
        if job in self.running and not self.hang_on_cancel:
            self.running[job][1].set()

    async def answer(self, job, number, payload):
        self.answers[job, number].set_result(payload)


def request(*acts, model="demo", **more):
    """The container of a request whose job does this."""
    header = {"kind": "request", "protocol": 1, "model": model, "do": [list(it) for it in acts]}
    return container.pack({**header, **more})


def events_in(text):
    """The events of a stream's text: `(number, kind, data)`."""
    found = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line[1:])
        if "id" in fields:
            found.append((int(fields["id"]), fields["event"], json.loads(fields["data"])))
    return found
