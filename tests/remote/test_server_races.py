"""What a client sends to a job that ends at that moment."""

import time

from fake_workers import FakeWorkers, request
from loopback_server import running


def test_values_for_a_job_that_has_just_ended_are_not_waited_for(tmp_path):
    """Found by the soak: the client was told of a fault of the server's."""

    class Ended(FakeWorkers):
        async def answer(self, job, number, payload):
            raise ValueError(f"no job {job} is running.")

    with running(tmp_path, Ended()) as (_, client):
        job = client.send(request(["local", 0, 5]))
        client.until(job, "RUNNING")
        while client.get(f"/v1/jobs/{job}/local/0").status_code != 200:
            time.sleep(0.005)
        answer = client.post(f"/v1/jobs/{job}/local/0", b"values")
        assert answer.status_code == 409
        assert answer.json()["what"] == "the job does not wait for the values of local() part 0."
        client.delete(f"/v1/jobs/{job}")
