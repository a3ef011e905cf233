"""Faults of keys and disks, on a server in a process of its own with workers that obey."""

import os
import shutil
import subprocess
import time

import pytest
from fake_workers import request
from loopback_server import Client, Process
from test_server_jobs import ROUTES, three_lines

from insitu import cli
from insitu.remote.server.keys import Keys

DISK_MB = 320
"""Of which the server keeps 256 in reserve."""
IN_ITS_OWN = ["unshare", "--mount", *(["--map-root-user"] if os.getuid() else []), "sh", "-c"]
MOUNT = 'mount -t tmpfs -o size={mb}m,mode=700 none "$0" && exec "$@"'


@pytest.fixture
def started(tmp_path):
    """Start a server; it is ended after the test."""
    made = []

    def start(*words, **more):
        made.append(Process(tmp_path / "server", *words, **more))
        return made[-1]

    yield start
    for it in made:
        it.end()


def asked(url, method, path, key):
    client = Client(url, key)
    try:
        return client.http.request(method, url + path, data=b"", timeout=10)
    finally:
        client.close()


def test_revoked_and_expired_keys_open_no_route_of_a_server_that_runs(started, tmp_path, capsys):
    """Fault 16, with the command line beside it."""
    keys = Keys(tmp_path / "server" / "keys.sqlite")
    ada, gone, eve = (keys.add(name) for name in ("ada", "gone", "eve"))
    it = started("--trust", "team")
    client = it.ready(ada)
    short = keys.add("short", days=3 / 86_400)
    late = Client(it.url, gone)
    job = late.send(request(["log", "mine"]))
    late.events(job)
    assert asked(it.url, "GET", "/v1/whoami", short).json()["name"] == "short"
    cli.main(["keys", "revoke", "gone", "--data", str(tmp_path / "server")])
    capsys.readouterr()
    expires = next(key.expires for key in keys.list() if key.name == "short")
    time.sleep(max(0.0, expires - time.time()) + 0.05)
    for key in (gone, short, ada[:-1], "insitu-0-0"):
        for method, path in ROUTES:
            three_lines(asked(it.url, method, path.format(job), key), 401)
    for method, path in ROUTES:
        if "{}" in path:
            three_lines(asked(it.url, method, path.format(job), eve), 404)
    assert client.events(client.send(request()))[-1][2]["phase"] == "COMPLETED"
    for each in (client, late):
        each.close()
    keys.close()


# a disk that is full -----------------------------------------------------------------------------


def can_mount():
    """Whether this user may have a small disk of their own."""
    if shutil.which("unshare") is None:
        return False
    tried = [*IN_ITS_OWN, MOUNT.format(mb=1), "/mnt", "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


class Disk:
    """The small disk of a server, seen through its process."""

    def __init__(self, process, folder):
        self.folder = f"/proc/{process.pid}/root{folder}"

    def free(self):
        return shutil.disk_usage(self.folder).free

    def fill(self, left=0):
        """Put something large beside the server's own files."""
        with open(f"{self.folder}/filler", "ab", buffering=0) as file:
            try:
                while (more := self.free() - left) > 0:
                    file.write(b"x" * min(more, 2**20))
            except OSError:
                pass

    def clear(self):
        os.unlink(f"{self.folder}/filler")


@pytest.fixture
def small(started, tmp_path):
    """A server whose folder is a disk of its own, and that disk."""
    if not can_mount():
        pytest.skip("this user may mount nothing")
    folder = tmp_path / "server" / "disk"
    folder.mkdir(parents=True)
    before = [*IN_ITS_OWN, MOUNT.format(mb=DISK_MB), str(folder)]
    it = started(before=before, data=folder)
    client = it.ready()
    yield client, Disk(it.process, folder)
    client.close()


@pytest.mark.slow
def test_a_disk_that_is_really_full_loses_no_job_and_nothing_that_was_accepted(small):
    """Fault 20: it fills up amid a job, whose result and lines no longer fit; then it is freed."""
    client, disk = small
    whole = client.send(request(["log", "before"]))
    client.events(whole)
    amid = client.send(
        request(["sleep", 3.0], ["lines", 300, 3_900], ["sleep", 3.5], ["log", "after"])
    )
    broken = client.send(request(["sleep", 3.0], ["size", 2 * 2**20]))
    client.until(broken, "RUNNING")
    disk.fill()
    assert disk.free() < 2**20
    began = time.monotonic()
    answer = client.post("/v1/jobs", request())
    assert three_lines(answer, 507)["what"] == "the server has no room for another job."
    assert answer.headers["Retry-After"]
    assert client.get("/livez").ok
    assert client.phase(amid) == "RUNNING"  # what can be read is answered
    assert client.get(f"/v1/jobs/{whole}/result").ok
    time.sleep(max(0.0, began + 4.5 - time.monotonic()))
    assert client.phase(broken) == "RUNNING"  # it has ended, which cannot be written down
    disk.clear()
    assert client.until(broken, "LOST", "ERROR", time_s=10)
    assert client.until(amid, "COMPLETED", time_s=10)
    events = client.events(amid)
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    texts = [data["text"] for _, kind, data in events if kind == "log"]
    assert texts[-1] == "after"
    assert len(texts) == 301 or "the server's disk did not take it" in str(texts)
    assert client.events(client.send(request()))[-1][2]["phase"] == "COMPLETED"
    assert client.get("/metrics").text.count("insitu_store_trouble 0")


@pytest.mark.slow
def test_a_request_that_does_not_fit_on_the_disk_is_a_sentence_and_leaves_nothing(small):
    """Fault 20: there is room when it begins, and none when it goes on."""
    client, disk = small

    def body():
        yield request()[:10]
        for _ in range(20):
            yield os.urandom(2**20)
            if disk.free() > 2**20:
                disk.fill()

    answer = client.post("/v1/jobs", body())
    assert three_lines(answer, 507)["why"] == "The disk of its data folder is full."
    disk.clear()
    assert os.listdir(f"{disk.folder}/requests") == []
    assert client.events(client.send(request()))[-1][2]["phase"] == "COMPLETED"


@pytest.mark.slow
def test_results_of_one_user_leave_room_for_the_other_on_a_small_disk(small):
    """A quarter of what is beyond the reserve for a result, a half for all of a user's."""
    client, disk = small
    before = disk.free()
    for _ in range(12):
        end = client.events(client.send(request(["size", 12 * 2**20])))[-1][2]
        assert end["phase"] == "COMPLETED", end
    assert before - disk.free() < 50 * 2**20
    end = client.events(client.send(request(["size", 30 * 2**20])))[-1][2]
    assert end["fault"]["kind"] == "insitu.ResultTooLargeError"
    until = time.monotonic() + 5
    while before - disk.free() > 40 * 2**20:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert client.events(client.send(request()))[-1][2]["phase"] == "COMPLETED"
