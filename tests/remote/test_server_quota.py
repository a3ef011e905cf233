"""What results and rows of one user stay on a server's disk, and for how long."""

import os
import shutil
import time

from fake_workers import request
from loopback_server import Client, running
from test_server_jobs import three_lines

from insitu.remote.protocol import Limits
from insitu.remote.server.callers import Door
from insitu.remote.server.keys import Keys

MEGABYTE = 2**20


def until(condition, time_s=5):
    end = time.monotonic() + time_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_results_are_forgotten_after_their_time(tmp_path, monkeypatch):
    monkeypatch.setattr("insitu.remote.server.desk.SWEEP_S", 0.1)
    with running(tmp_path, keep_s=1_000) as (server, client):
        job = client.send(request())
        client.until(job, "COMPLETED")
        folder = server.server.folder
        assert folder.old(time.time() + 900) == []
        assert folder.old(time.time() + 1_100) == [job]
        os.utime(folder.result(job), (time.time() - 1_100,) * 2)
        until(lambda: not folder.result(job).exists())
        said = three_lines(client.get(f"/v1/jobs/{job}/result"), 410)
        assert said["next"] == "Run the block again."
        assert "payload" not in client.events(job)[-1][2]
        assert list((tmp_path / "requests").iterdir()) == []


def pair(server, keys, *names):
    return [Client(server.url, keys.add(name)) for name in names]


def test_a_users_oldest_results_make_room_for_the_newest_and_nobody_elses_do(tmp_path):
    keys = Keys(tmp_path / "keys.sqlite")
    limits = Limits(kept_bytes=5 * MEGABYTE)
    with running(tmp_path / "data", limits=limits, door=Door(keys=keys)) as (server, _):
        ada, eve = pair(server, keys, "ada", "eve")
        first = ada.send(request(["size", 2 * MEGABYTE]))
        ada.events(first)
        mine = [eve.send(request(["size", 2 * MEGABYTE])) for _ in range(4) if not time.sleep(0.02)]
        for it in mine:
            eve.events(it)
        old = f"/v1/jobs/{mine[1]}/result"
        until(lambda: eve.get(old).status_code == 410)
        said = eve.get(old).json()
        assert said["what"] == "this result is kept no longer."
        assert "5,242,880 bytes" in said["why"]
        kept = [it for it in mine if eve.get(f"/v1/jobs/{it}/result").ok]
        assert kept == mine[2:]
        assert ada.get(f"/v1/jobs/{first}/result").ok
        assert len([*(tmp_path / "data" / "results").iterdir()]) == 3
        for it in (ada, eve):
            it.close()
    keys.close()


def test_a_user_who_tells_very_much_loses_the_oldest_jobs_first(tmp_path):
    keys = Keys(tmp_path / "keys.sqlite")
    limits = Limits(kept_rows_bytes=MEGABYTE)
    with running(tmp_path / "data", limits=limits, door=Door(keys=keys)) as (server, _):
        ada, eve = pair(server, keys, "ada", "eve")
        first = ada.send(request(["log", "mine"]))
        ada.events(first)
        loud = []
        for _ in range(4):
            loud.append(eve.send(request(["lines", 100, 3_900])))
            eve.events(loud[-1])
        until(lambda: eve.get(f"/v1/jobs/{loud[1]}").status_code == 404)
        assert [it["id"] for it in eve.get("/v1/jobs").json()] == loud[:1:-1]
        assert len(eve.events(loud[3])) > 100
        assert ada.events(first)
        rows = server.server.store.rows("SELECT COUNT(*) FROM events WHERE job = ?", (loud[0],))
        assert rows[0][0] == 0
        for it in (ada, eve):
            it.close()
    keys.close()


def test_one_user_cannot_fill_the_disk(tmp_path, monkeypatch):
    """A disk of 40 MB beyond its reserve: half of it, and a result a half of that, at most."""
    whole = 140 * MEGABYTE
    real = shutil.disk_usage

    def usage(path):
        used = sum(it.stat().st_size for it in (tmp_path / "data" / "results").iterdir())
        return real(path)._replace(free=whole - used)

    monkeypatch.setattr("insitu.remote.server.files.shutil.disk_usage", usage)
    keys = Keys(tmp_path / "keys.sqlite")
    door = Door(keys=keys)
    with running(tmp_path / "data", door=door, free_bytes=100 * MEGABYTE) as (server, _):
        ada, eve = pair(server, keys, "ada", "eve")
        for _ in range(8):
            until(lambda: usage(tmp_path).free >= 110 * MEGABYTE)  # the oldest have gone
            job = eve.send(request(["size", 9 * MEGABYTE]))
            assert eve.events(job)[-1][2]["phase"] == "COMPLETED"
        end = eve.events(eve.send(request(["size", 11 * MEGABYTE])))[-1][2]
        assert end["fault"]["text"].startswith("The result is larger than 10,")
        until(lambda: usage(tmp_path).free >= 120 * MEGABYTE)
        assert ada.events(ada.send(request(["log", "hello"])))[-1][2]["phase"] == "COMPLETED"
        for it in (ada, eve):
            it.close()
    keys.close()


def test_a_result_that_is_being_removed_is_not_counted_as_room_twice(tmp_path, monkeypatch):
    """Neither held and free at once, nor as gone when it could not be removed."""
    limits = Limits(kept_bytes=5 * MEGABYTE)
    held = []
    with running(tmp_path, limits=limits) as (server, client):
        quota, folder = server.server.desk.quota, server.server.folder
        remove = folder.remove_result

        def watched(id):
            held.append(quota._results.total() // MEGABYTE)
            if len(held) == 1:
                raise OSError("a disk that does not answer")
            remove(id)

        monkeypatch.setattr(folder, "remove_result", watched)
        for _ in range(3):
            job = client.send(request(["size", 2 * MEGABYTE]))
            assert client.events(job)[-1][2]["phase"] == "COMPLETED"
        until(lambda: len(held) == 2)
        until(lambda: quota._results.total() // MEGABYTE == 4)
        assert held == [4, 4]

        monkeypatch.setattr("insitu.remote.server.desk.SWEEP_S", 0.1)
        held.clear()
        os.utime(folder.result(job), (1, 1))  # it is older than any is kept
        until(lambda: not folder.result(job).exists())
        assert held == [2, 2]
