"""A job that ends while it is being answered."""

import asyncio
import os

from insitu.remote.protocol import Limits, Local, Task
from insitu.remote.worker.frames import packed
from insitu.remote.worker.running import Running


def test_an_answer_to_a_job_that_ends_before_it_is_sent_goes_nowhere(tmp_path):
    """Found by the soak: the client was told of a fault of the server's."""
    request, result = tmp_path / "request", tmp_path / "result"
    request.write_bytes(b"")

    async def answered():
        told = []
        job = Running(Task("a", "demo", request, result, Limits()), told.append, None, early=False)
        fds = job.open()
        os.write(fds[0], packed("local", {"number": 0, "index": 0}))
        while not told:
            await asyncio.sleep(0)
        answering = asyncio.ensure_future(job.answer(0, b"values"))
        await asyncio.sleep(0)  # it is about to be sent
        job.lost("its process was killed")
        await answering
        for fd in fds:
            os.close(fd)
        return told, await job.over

    told, over = asyncio.run(answered())
    assert isinstance(told[0], Local)
    assert over.phase == "LOST"
