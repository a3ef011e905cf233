"""Fault 14, where blocks run: in no process of a server's is anything ever unpickled."""

import os
import pickle

import pytest
from test_jail import FOUND
from worker_runs import running

from insitu import LanguageModel
from insitu.remote.protocol import Local
from insitu.remote.wire import container
from insitu.remote.worker import opening

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (FOUND.landlock and FOUND.seccomp), reason="needs a kernel with landlock and seccomp"
    ),
]
EVERYWHERE = """
import os, pickle, sys
def refused(*args, **more):
    with open({mark!r}, "a") as file:
        file.write(repr(sys.argv))
    raise AssertionError("something was unpickled")
class Unpickler(pickle.Unpickler):
    load = refused
pickle.loads = pickle.load = pickle._loads = pickle._load = refused
pickle.Unpickler = Unpickler
with open({mark!r} + ".in", "a") as file:
    file.write(" ".join(sys.orig_argv) + "\\n")
"""
"""Read by every Python that starts with the folder on its path."""


class Harm:
    def __reduce__(self):
        return os._exit, (66,)


BODY = pickle.dumps(Harm())
HEAD = {"kind": "request", "protocol": 1, "model": "demo", "python": "3.11", "insitu": "0.1.0"}
WRONG = {
    "bare": BODY,
    "after the magic": b"INSITU\x01" + BODY,
    "as the block": container.pack({**HEAD, "body": BODY.hex()}),
    "as a value": container.pack({**HEAD, "block": {"args": [{"bytes": BODY.hex()}]}}),
}


@pytest.mark.parametrize("apart", [False, True])
def test_no_process_of_a_server_unpickles_anything(tmp_path, monkeypatch, apart):
    site = tmp_path / "site"
    site.mkdir()
    mark = tmp_path / "unpickled"
    (site / "sitecustomize.py").write_text(EVERYWHERE.format(mark=str(mark)))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    good = opening._warm_request(LanguageModel("demo"))
    real = "insitu.remote.blocks.run:execute"
    with running(tmp_path, trust="team", apart=apart, execute=real) as runs:
        assert runs.job(good, timeout_s=200).phase == "COMPLETED"
        for name, body in WRONG.items():
            ran = runs.job(body)
            assert ran.phase == "ERROR", name
            assert "unpickled" not in ran.text, name
        after = runs.job(good)
        assert after.phase == "COMPLETED", after.text
    assert not mark.exists()
    started = (tmp_path / "unpickled.in").read_text()
    assert "model_process" in started
    assert ("device_process" in started) == apart


def test_an_answer_to_a_local_part_that_is_a_pickle_ends_the_job(tmp_path):
    source = """
from insitu.remote.wire import container
answer = link.local(0, container.pack({"kind": "local"}))
container.unpack(bytes(answer), most=2**20, header_most=2**20)
"""
    asked = []
    with running(tmp_path, trust="team") as runs:
        ran = runs.job(source, answer=lambda _: BODY, hear=asked.append, timeout_s=200)
        assert any(isinstance(it, Local) for it in asked)
        assert ran.phase == "ERROR"
        assert ran.ended.fault.kind == "insitu.WireError"
        assert runs.job("print(1)").lines == ["1"]
