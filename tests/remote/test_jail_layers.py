"""Each layer of the jail by itself: what it holds back when the others are not there."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_jail import FOUND, PROBES, probing
from worker_runs import running

from insitu.remote.protocol import Log
from insitu.remote.worker import landlock
from insitu.remote.worker.model_process import children_of

pytestmark = pytest.mark.skipif(
    not (FOUND.landlock and FOUND.seccomp), reason="needs a kernel with landlock and seccomp"
)
SHARED = {
    "writing a file", "making a folder", "writing to devices", "links", "os.system", "subprocess",
    "posix_spawn", "ctypes: system",
}  # fmt: skip
FILES = {"reading the accounts", "listing the root", "listing processes", "ctypes: open"}
"""What landlock alone holds back; a filter of calls does not know the names of files."""
CALLS = {
    "an internet socket", "a datagram", "a local socket", "a pair of sockets", "fork",
    "signals to its group", "fcntl signals", "its own limits", "changing the working folder",
    "ctypes: memory files", "ctypes: unshare", "ctypes: another's memory",
    "ctypes: die with nobody", "ctypes: ptrace itself", "ctypes: a filter that allows",
}  # fmt: skip
"""What the filter alone holds back."""
EMPTIED = "import os; os.close(os.open({path!r}, os.O_RDONLY | os.O_TRUNC))"
BOUND = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.close()"

ALONE = """
import dataclasses, json, sys
from insitu.remote.protocol import Limits
from insitu.remote.worker import jail, landlock, seccomp
layer, probes, version = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
if version:
    landlock.version = lambda: version
made = dataclasses.replace(jail.Jail.prepared("team"), own_user=False)
if layer == "seccomp":
    landlock.Rules.enter = lambda self: None
if layer == "landlock":
    seccomp.enter = lambda *_: None
if layer != "none":
    made.enter(Limits(), 1)
for name, source in probes.items():
    print(name, end=": ")
    exec(compile(source, name, "exec"), {})
"""


def alone(layer, probes, version=0):
    """What becomes of probes in a process that has one layer: refused, or done."""
    sources = {name: probing(body) for name, body in probes.items()}
    ran = subprocess.run(
        [sys.executable, "-c", ALONE, layer, json.dumps(sources), str(version)],
        capture_output=True, text=True, timeout=120, check=True, start_new_session=True,
    )  # fmt: skip
    said = dict(line.split(": ", 1) for line in ran.stdout.splitlines())
    assert said.keys() == probes.keys(), ran.stdout
    return {name: text.split()[0] for name, text in said.items()}


def of(*names):
    return {name.replace(": ", " "): PROBES[name] for name in sorted({n for s in names for n in s})}


def all_of(probes, outcome):
    return dict.fromkeys(probes, outcome)


def test_every_probe_works_where_there_is_no_layer(tmp_path):
    (tmp_path / "kept").write_text("kept")
    probes = of(SHARED, FILES, CALLS)
    probes |= {"emptying": EMPTIED.format(path=str(tmp_path / "kept")), "a port": BOUND}
    assert alone("none", probes) == all_of(probes, "done")
    assert (tmp_path / "kept").read_text() == ""


def test_landlock_alone_keeps_files_and_programs_away():
    probes = of(SHARED, FILES)
    assert alone("landlock", probes) == all_of(probes, "refused")
    assert alone("landlock", of({"fork", "a pair of sockets"})) == {
        "fork": "done", "a pair of sockets": "done",
    }  # fmt: skip


@pytest.mark.skipif(landlock.version() < 6, reason="needs a newer landlock")
def test_a_newer_landlock_alone_keeps_ports_and_signals_away_too():
    probes = {"a port": BOUND, **of({"signals to its parent"})}
    assert alone("landlock", probes) == all_of(probes, "refused")


def test_the_filter_alone_keeps_network_processes_and_writing_away():
    probes = {**of(SHARED, CALLS), "a port": BOUND}
    assert alone("seccomp", probes) == all_of(probes, "refused")
    assert alone("seccomp", of({"reading the accounts"})) == {"reading the accounts": "done"}


@pytest.mark.parametrize(("layer", "version"), [("seccomp", 0), ("both", 1), ("both", 2)])
def test_no_file_can_be_emptied_where_landlock_does_not_govern_that(tmp_path, layer, version):
    """Linux 5.13 to 6.1: opening to read, and to empty, is reading to such a landlock."""
    kept = Path(os.path.realpath(json.__file__)).with_name("insitu-kept.txt")
    for path in (kept, tmp_path / "kept"):
        path.write_text("kept")
        try:
            probe = {"emptying": EMPTIED.format(path=str(path))}
            assert alone(layer, probe, version) == {"emptying": "refused"}
            assert path.read_text() == "kept"
        finally:
            path.unlink()


# `public` -----------------------------------------------------------------------------------------

ISOLATED = """
import json, os, socket, sys
from insitu.remote.worker import jail
port = int(sys.argv[1])
def reaches():
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True
def looks():
    seen = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [reaches(), [name for _, name in socket.if_nameindex()], os.getpid(), len(seen)]
before = looks()
jail.isolate("public")
print(json.dumps([before, looks()]))
"""


@pytest.mark.skipif(not FOUND.namespaces, reason="needs namespaces")
def test_the_namespaces_alone_have_no_network_and_no_other_process():
    """Without seccomp or landlock: a listener of this machine, which is there before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-c", ISOLATED, str(port)],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
    before, after = json.loads(ran.stdout)
    assert before[0] is True
    assert before[3] > 1
    assert after == [False, ["lo"], 1, 1]


@pytest.mark.slow
@pytest.mark.skipif(not FOUND.namespaces, reason="needs namespaces")
@pytest.mark.parametrize("apart", [False, True])
def test_a_public_job_is_in_the_namespaces_of_its_model_process(tmp_path, apart):
    """As the kernel tells of the process, from outside, while its block runs."""
    seen = []

    def hear(said):
        if isinstance(said, Log):
            outer = runs.pool._hosts["demo"].pid
            (first,) = (it for it in children_of(outer) if of_space(it) != of_space("self"))
            seen.append((of_space(first), devices(first)))
            seen.extend((of_space(it), devices(it)) for it in children_of(first))

    with running(tmp_path, trust="public", apart=apart) as runs:
        ran = runs.job("import time; print('there'); time.sleep(2)", hear=hear, timeout_s=200)
    assert ran.phase == "COMPLETED", ran.text
    assert len(seen) >= 2  # the model process, the job, those that wait
    for spaces, found in seen:
        assert spaces == seen[0][0]
        assert not set(spaces.values()) & set(of_space("self").values())
        assert found == ["lo"]


def of_space(pid):
    """A process's namespaces of network, processes, mounts, shared memory and host name."""
    return {it: os.readlink(f"/proc/{pid}/ns/{it}") for it in ("net", "pid", "mnt", "ipc", "uts")}


def devices(pid):
    lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    return [line.split(":")[0].strip() for line in lines]
