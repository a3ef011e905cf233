"""What a block may not do: every probe works with trust `self` and is refused in the jail."""

import importlib.util
import mmap
import os
import time
from pathlib import Path

import pytest
import torch
from worker_runs import running

from insitu.errors import UsageError
from insitu.remote.allowed import MODULES
from insitu.remote.protocol import Limits, Log
from insitu.remote.worker import jail, seccomp, syscalls
from insitu.remote.worker.running import no_writer

FOUND = jail.available()
pytestmark = pytest.mark.skipif(
    not (FOUND.landlock and FOUND.seccomp), reason="needs a kernel with landlock and seccomp"
)
PROBE = """
def probe():
{body}
try:
    probe()
except BaseException as error:
    print("refused", type(error).__name__, error)
else:
    print("done")
"""
LIBC = "import ctypes; libc = ctypes.CDLL(None, use_errno=True)\n"
REQUIRE = "\nif it < 0: raise OSError(ctypes.get_errno(), 'libc')"


@pytest.fixture(scope="module")
def jailed(tmp_path_factory):
    with running(tmp_path_factory.mktemp("team"), trust="team") as runs:
        yield runs


@pytest.fixture(scope="module")
def free(tmp_path_factory):
    with running(tmp_path_factory.mktemp("self"), trust="self") as runs:
        yield runs


PROBES = {
    "reading the accounts": "open('/etc/passwd').read()",
    "reading its parent's environment": (
        "import os; open(f'/proc/{os.getppid()}/environ').read()"
    ),
    "reading its own environment": "open('/proc/self/environ').read()",
    "reading process 1": "open('/proc/1/environ').read()",
    "listing the root": "__import__('os').listdir('/')",
    "listing processes": "__import__('os').listdir('/proc')",
    "writing a file": "open('/tmp/insitu-probe', 'w').close()",
    "making a folder": "import tempfile, os; os.rmdir(tempfile.mkdtemp())",
    "writing to devices": "open('/dev/null', 'w').close()",
    "writing shared memory": (
        "import os; open('/dev/shm/insitu-p', 'w'); os.remove('/dev/shm/insitu-p')"
    ),
    "numpy.fromfile": "import numpy; numpy.fromfile('/etc/passwd', dtype='uint8')",
    "torch.from_file": "torch.from_file('/etc/passwd', size=10, dtype=torch.uint8)",
    "torch.save": "import os; torch.save({}, '/tmp/insitu-p'); os.remove('/tmp/insitu-p')",
    "a dunder walk to os": (
        "every = ().__class__.__base__.__subclasses__()\n"
        "cls = [c for c in every if c.__name__ == '_wrap_close'][0]\n"
        "assert cls.__init__.__globals__['system']('true') == 0"
    ),
    "os.system": "import os; assert os.system('true') == 0",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "fork": "import os\npid = os.fork()\nif pid == 0: os._exit(0)\nos.waitpid(pid, 0)",
    "posix_spawn": "import os; os.waitpid(os.posix_spawn('/bin/true', ['true'], {}), 0)",
    "multiprocessing": (
        "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=int)\n"
        "p.start(); p.join()"
    ),
    "an internet socket": "import socket; socket.socket().close()",
    "a datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()",
    "a local socket": "import socket; socket.socket(socket.AF_UNIX).close()",
    "a pair of sockets": "import socket; [s.close() for s in socket.socketpair()]",
    "signals to its parent": "import os; os.kill(os.getppid(), 0)",
    "signals to its group": "import os, signal\nsignal.signal(1, signal.SIG_IGN)\nos.killpg(0, 1)",
    "fcntl signals": "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())",
    "its own limits": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))"
    ),
    "changing the working folder": "import os; os.chdir('/')",
    "links": "import os; os.symlink('/etc', '/tmp/insitu-l'); os.remove('/tmp/insitu-l')",
    "ctypes: system": LIBC + "it = -libc.system(b'true')" + REQUIRE,
    "ctypes: open": LIBC + "it = libc.open(b'/etc/passwd', 0)" + REQUIRE,
    "ctypes: memory files": LIBC + "it = libc.memfd_create(b'x', 0)" + REQUIRE,
    "ctypes: unshare": LIBC + "it = libc.unshare(0x04000000)" + REQUIRE,
    "ctypes: ptrace itself": LIBC + "it = libc.ptrace(0x4206, 999999, 0, 0)\n"
    "if ctypes.get_errno() == 1: raise OSError(1, 'ptrace')",
    "ctypes: another's memory": LIBC + "import os\n"
    "it = libc.process_vm_readv(os.getpid(), 0, 0, 0, 0, 0)" + REQUIRE,
    "ctypes: die with nobody": LIBC + "it = libc.prctl(1, 0, 0, 0, 0)" + REQUIRE,
    "ctypes: keys": LIBC + "it = libc.syscall(250, 0, -3, 1)" + REQUIRE,
    "ctypes: a filter that allows": LIBC + "it = libc.prctl(22, 0, 0, 0, 0)\n"
    "if ctypes.get_errno() == 1: raise OSError(1, 'prctl')",
}  # fmt: skip


def probing(body):
    return PROBE.format(body="\n".join("    " + line for line in body.splitlines()))


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_is_refused_in_the_jail(jailed, name):
    ran = jailed.job(probing(PROBES[name]))
    assert ran.phase == "COMPLETED", ran.text
    assert len(ran.lines) == 1
    assert ran.lines[0].startswith("refused"), ran.lines


@pytest.mark.parametrize("name", PROBES)
def test_the_same_probe_works_without_it(free, name):
    if name in ("ctypes: keys", "reading process 1"):
        pytest.skip("not on every machine")
    ran = free.job(probing(PROBES[name]))
    assert ran.phase == "COMPLETED", ran.text
    assert ran.lines == ["done"]


def test_a_jailed_job_computes_what_a_plain_one_does(jailed, free):
    source = """
with model.trace("The Eiffel Tower is in the city of"):
    logits = model.lm_head.output.save()
result.write(logits.detach().numpy().tobytes())
"""
    one, other = jailed.job(source), free.job(source)
    assert one.phase == other.phase == "COMPLETED", one.text
    assert one.result == other.result
    assert torch.frombuffer(bytearray(one.result), dtype=torch.float32).isfinite().all()


def test_a_jailed_job_generates_and_takes_gradients(jailed):
    ran = jailed.job(
        """
with model.generate("Once upon a time", max_new_tokens=3):
    ids = model.generator.output.save()
x = torch.randn(3, 64, 64, requires_grad=True)
torch.linalg.svd(x)[1].sum().backward()
torch.fft.fft(x), torch.nn.functional.scaled_dot_product_attention(x, x, x), x.numpy(force=True)
print(ids.shape[1], x.grad.isfinite().all().item())
"""
    )
    assert ran.phase == "COMPLETED", ran.text
    assert ran.lines[-1].endswith("True")


def test_modules_that_a_block_may_name_are_there_in_the_jail(jailed):
    names = sorted(name for name in MODULES if importlib.util.find_spec(name))
    ran = jailed.job(f"import {', '.join(names)}, torch.func, torch.distributions; print('in')")
    assert ran.lines == ["in"], ran.text


def test_files_of_other_jobs_cannot_be_opened(jailed):
    jailed.job("result.write(b'secret')", id="first")
    path = str(jailed.folder / "first.result")
    ran = jailed.job(probing(f"open({path!r}).read()"))
    assert ran.lines[0].startswith("refused PermissionError")


def test_a_job_has_its_three_files_and_no_environment(jailed):
    ran = jailed.job(
        """
import errno, os
found = []
for fd in range(200):
    try:
        os.fstat(fd)
        found.append(fd)
    except OSError as error:
        assert error.errno == errno.EBADF
print(len(found), dict(os.environ))
"""
    )
    count, environment = ran.lines[0].split(" ", 1)
    assert environment == "{'TOKENIZERS_PARALLELISM': 'false'}"
    assert int(count) <= 6  # nothing thrice, link, result


def test_the_jail_is_one_user_deep_and_has_no_capability(jailed):
    """As the kernel tells of the process, from outside, while its block runs."""
    seen = {}

    def hear(said):
        if isinstance(said, Log):
            pid = said.text.split()[0]
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            seen.update(line.split(":\t", 1) for line in lines if ":\t" in line)

    source = """
import os, ctypes, time
print(os.getpid(), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
time.sleep(1)
"""
    ran = jailed.job(source, hear=hear)
    assert ran.lines[0].split()[1] == "0"  # nobody may look into its memory
    sets = {name: int(seen[f"Cap{name}"], 16) for name in ("Eff", "Prm", "Inh", "Amb")}
    assert sets == {"Eff": 0, "Prm": 0, "Inh": 0, "Amb": 0}
    assert seen["NoNewPrivs"] == "1"
    assert seen["Seccomp"] == "2"  # a filter
    users = {int(user) for name in ("Uid", "Gid") for user in seen[name].split()}
    assert len(users) == 1 or not FOUND.own_user
    assert not FOUND.own_user or (min(users) > 1_000_000_000 and not seen["Groups"].strip())


def test_a_memory_bomb_ends_with_a_sentence_and_the_next_job_runs(jailed):
    limits = Limits(memory_bytes=300 * 2**20)
    kept = "kept = []\nwhile True: kept.append(bytearray(10_000_000))"
    ran = jailed.job(kept, limits=limits)
    assert ran.phase == "ERROR"
    assert ran.ended.fault.kind == "MemoryError"
    assert "memory" in ran.text
    ran = jailed.job("kept = [torch.ones(10**6) for _ in range(10**6)]", limits=limits)
    assert ran.phase == "ERROR"
    assert "memory" in ran.text
    assert jailed.job("print(1)").phase == "COMPLETED"


def test_shared_memory_counts_too(jailed):
    bomb = """
import mmap
kept = []
while True:
    kept.append(mmap.mmap(-1, 2**24))
    kept[-1].write(b"x" * 2**24)
"""
    ran = jailed.job(bomb, limits=Limits(memory_bytes=300 * 2**20))
    assert (ran.phase, ran.ended.fault.kind) == ("ERROR", "MemoryError")


def test_a_thread_bomb_is_bounded(jailed):
    bomb = """
import threading, time
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
except RuntimeError as error:
    print("refused", threading.active_count() < 400)
"""
    ran = jailed.job(bomb, limits=Limits(wall_s=20))
    assert ran.lines == ["refused True"] or "threads" in ran.text
    assert jailed.job("print(1)").phase == "COMPLETED"


def test_a_fork_bomb_makes_nothing(jailed):
    bomb = """
import os
made = 0
for _ in range(1000):
    try:
        os.fork()
        made += 1
    except OSError:
        pass
print(made)
"""
    assert jailed.job(bomb).lines == ["0"]


def test_a_result_cannot_outgrow_its_limit_by_any_call(jailed):
    ran = jailed.job(
        "import os\nfd = result.raw.fileno()\nwhile True: os.write(fd, b'x' * 2**20)",
        limits=Limits(result_bytes=5 * 2**20),
    )
    assert ran.phase == "ERROR"
    assert len(ran.result) <= 6 * 2**20


def test_a_result_is_final_when_its_job_has_ended(jailed):
    """A copy of the file that a block keeps open makes the server wait for its process."""
    quick = jailed.job("result.write(b'good')")
    assert (quick.phase, quick.result) == ("COMPLETED", b"good")
    kept = """
import os, threading, time
fd = os.dup(result.raw.fileno())
def late():
    time.sleep(0.3)
    os.pwrite(fd, b"evil", 0)
threading.Thread(target=late).start()
result.write(b"good")
result.flush()
from insitu.remote.worker import frames
frames.send(link._fd, "ended", {"phase": "COMPLETED", "fault": None})
time.sleep(0.6)
"""
    slow = jailed.job(kept)
    assert slow.phase == "COMPLETED"
    path = next(jailed.folder.glob(f"{slow.id}.result"))
    time.sleep(0.5)
    assert path.read_bytes() == slow.result


def test_nobody_writes_is_told_by_the_kernel(tmp_path):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x" * 10)
        file.flush()
        assert not no_writer(path)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 10):
        file.close()
        assert not no_writer(path)  # a mapping writes too
    assert no_writer(path)


def test_user_namespaces_isolate_a_public_job(tmp_path):
    if not FOUND.namespaces:
        pytest.skip("needs namespaces")
    with running(tmp_path, trust="public") as runs:
        ran = runs.job(
            "import os; print(os.getppid())\nwith model.trace('a'): x = model.lm_head.output"
        )
        assert ran.phase == "COMPLETED", ran.text
        assert ran.lines == ["1"]  # the model process is the first of its namespace
        assert runs.job(probing(PROBES["an internet socket"])).lines[0].startswith("refused")
        limits = Limits(memory_bytes=200 * 2**20)
        bomb = """
import mmap
m = mmap.mmap(-1, 2**30)
for _ in range(2**6): m.write(b"x" * 2**24)
while True: pass
"""
        assert runs.job(bomb, limits=limits).ended.fault.kind == "MemoryError"


def test_what_this_machine_lacks_is_said_before_a_server_starts(monkeypatch):
    monkeypatch.setattr(jail.landlock, "version", lambda: 0)
    with pytest.raises(UsageError) as error:
        jail.require("team")
    assert error.value.what == "--trust team cannot be had on this machine: no landlock."
    jail.require("self")


def test_every_mode_says_what_it_does_not_stop():
    for trust in ("self", "team", "public"):
        said = jail.says(trust)
        assert f"trust: {trust}" in said
        assert "Does not stop" in said


def allowed(machine, number, arguments=(0, 0, 0, 0, 0, 0), pid=4242, arch=None):
    """What the filter does with a call, by running its program: an oracle for both machines."""
    filter = seccomp.assembled(machine)
    code, data = filter.of(pid), bytearray(64)
    data[0:4] = number.to_bytes(4, "little")
    data[4:8] = (arch or seccomp.ARCHITECTURES[machine]).to_bytes(4, "little")
    for i, value in enumerate(arguments):
        data[16 + 8 * i : 24 + 8 * i] = value.to_bytes(8, "little")
    at = word = 0
    while True:
        op, then, otherwise, value = seccomp._INSTRUCTION.unpack_from(code, 8 * at)
        at += 1
        if op == 0x20:
            word = int.from_bytes(data[value : value + 4], "little")
        elif op == 0x54:
            word &= value
        elif op == 0x06:
            return value
        else:
            holds = {0x15: word == value, 0x45: bool(word & value), 0x35: word >= value}[op]
            at += then if holds else otherwise


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_allows_what_is_listed_and_nothing_else(machine, column):
    listed = {both[column] for both in syscalls.ALLOWED.values()}
    told_apart = {both[column] for both in syscalls.BY_ARGUMENT.values()}
    for number in set(range(600)) - told_apart:
        expected = number in listed
        assert (allowed(machine, number) == seccomp.ALLOW) == expected, number
    assert allowed(machine, 435) == seccomp.REFUSE | 38  # clone3: glibc falls back to clone
    assert allowed(machine, 0, arch=0x40000003) == seccomp.KILL


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_calls_are_told_apart_by_their_arguments(machine, column):
    numbers = {name: both[column] for name, both in syscalls.BY_ARGUMENT.items()}

    def may(name, *arguments):
        return allowed(machine, numbers[name], arguments) == seccomp.ALLOW

    assert may("clone", 0x3D0F00)  # glibc's threads
    assert not may("clone", 17)  # fork
    assert not may("clone", 0x4111)  # vfork
    assert not may("clone", 0x3D0F00 | 0x10000000)  # a thread in a new user namespace
    assert may("kill", 4242)
    assert not may("kill", 1)
    assert not may("kill", 2**32 - 1)
    assert may("tgkill", 4242)
    assert not may("fcntl", 0, 8)
    assert may("fcntl", 0, 3)
    assert may("prlimit64", 0, 3, 0)
    assert not may("prlimit64", 0, 3, 1 << 40)
    assert not may("prlimit64", 7, 3, 0)
    assert not may("prctl", 1)
    assert not may("ioctl", 0, 0x5412)


OPENED = {
    "to be read": (os.O_RDONLY | os.O_CLOEXEC, True),
    "to be listed": (os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK, True),
    "to be written": (os.O_WRONLY, False),
    "to be read and written": (os.O_RDWR, False),
    "with the third access mode": (3, False),
    "to be emptied": (os.O_RDONLY | os.O_TRUNC, False),
    "to be made": (os.O_RDONLY | os.O_CREAT, False),
    "to be appended to": (os.O_WRONLY | os.O_APPEND, False),
    "without a name": (os.O_TMPFILE | os.O_RDWR, False),
}


@pytest.mark.parametrize("how", OPENED)
@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_files_are_opened_to_be_read_and_no_other_way(machine, column, how):
    flags, expected = OPENED[how]
    at = 2**64 - 100  # AT_FDCWD
    openat = syscalls.BY_ARGUMENT["openat"][column]
    assert (allowed(machine, openat, (at, 0, flags)) == seccomp.ALLOW) == expected
    if machine == "x86_64":
        assert (allowed(machine, 2, (0, flags)) == seccomp.ALLOW) == expected
    for other in ("openat2", "creat", "truncate"):  # whose flags lie in memory, or are implied
        assert other not in {**syscalls.ALLOWED, **syscalls.BY_ARGUMENT}


def test_x32_calls_end_the_process():
    assert allowed("x86_64", 0x40000000) == seccomp.KILL


@pytest.mark.parametrize(
    "loop",
    [
        "while True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "sum(iter(int, 1))",
    ],
)
def test_a_loop_without_end_is_ended_at_the_deadline(jailed, loop):
    began = time.monotonic()
    ran = jailed.job(loop, limits=Limits(wall_s=0.5))
    assert ran.phase == "TIMEOUT"
    assert "0.5 s" in ran.text
    assert time.monotonic() - began < 2.5
