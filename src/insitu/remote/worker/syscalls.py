"""The system calls that a jailed job may make, by their numbers on x86-64 and aarch64.

What Python and torch need to compute, to read what they import late, and to write to files that
are open already. All others fail with EPERM. Told apart by their arguments are `open` and `openat`
(to read), `clone` (threads, never processes), `kill` and `tgkill` (itself only), `fcntl`, `ioctl`,
`prctl` and `prlimit64`.
Numbers: the kernel's `syscall_64.tbl` of x86 and its `asm-generic/unistd.h`.
"""

ALLOWED: dict[str, tuple[int | None, int | None]] = {
    # name: (x86-64, aarch64); None where the machine has no such call
    "read": (0, 63), "write": (1, 64), "readv": (19, 65), "writev": (20, 66),
    "pread64": (17, 67), "pwrite64": (18, 68), "preadv": (295, 69), "pwritev": (296, 70),
    "preadv2": (327, 286), "pwritev2": (328, 287), "lseek": (8, 62), "close": (3, 57),
    "close_range": (436, 436), "dup": (32, 23), "dup2": (33, None), "dup3": (292, 24),
    "pipe": (22, None), "pipe2": (293, 59), "eventfd2": (290, 19),
    "stat": (4, None), "lstat": (6, None), "fstat": (5, 80), "newfstatat": (262, 79),
    "statx": (332, 291), "access": (21, None), "faccessat": (269, 48), "faccessat2": (439, 439),
    "readlink": (89, None), "readlinkat": (267, 78), "getdents64": (217, 61), "getcwd": (79, 17),
    "fsync": (74, 82), "fdatasync": (75, 83), "ftruncate": (77, 46), "fallocate": (285, 47),
    "fadvise64": (221, 223),
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "madvise": (28, 233), "brk": (12, 214), "mincore": (27, 232), "msync": (26, 227),
    "membarrier": (324, 283),
    "futex": (202, 98), "set_robust_list": (273, 99), "set_tid_address": (218, 96),
    "rseq": (334, 293), "sched_yield": (24, 124), "sched_getaffinity": (204, 123),
    "sched_getparam": (143, 121), "sched_getscheduler": (145, 120),
    "sched_get_priority_max": (146, 125), "sched_get_priority_min": (147, 126),
    "getcpu": (309, 168), "arch_prctl": (158, None),
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "rt_sigpending": (127, 136), "sigaltstack": (131, 132), "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "gettimeofday": (96, 169), "time": (201, None),
    "times": (100, 153), "getrusage": (98, 165), "sysinfo": (99, 179), "uname": (63, 160),
    "getpid": (39, 172), "gettid": (186, 178), "getppid": (110, 173), "getpgrp": (111, None),
    "getuid": (102, 174), "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177),
    "getrlimit": (97, 163), "getrandom": (318, 278),
    "poll": (7, None), "ppoll": (271, 73), "select": (23, None), "pselect6": (270, 72),
    "epoll_create1": (291, 20), "epoll_ctl": (233, 21), "epoll_wait": (232, None),
    "epoll_pwait": (281, 22),
    "exit": (60, 93), "exit_group": (231, 94),
}  # fmt: skip

BY_ARGUMENT: dict[str, tuple[int | None, int | None]] = {
    "open": (2, None), "openat": (257, 56),  # landlock says which files
    "clone": (56, 220), "kill": (62, 129), "tgkill": (234, 131), "fcntl": (72, 25),
    "ioctl": (16, 29), "prctl": (157, 167), "prlimit64": (302, 261),
}  # fmt: skip

MISSING: dict[str, tuple[int, int]] = {"clone3": (435, 435)}
"""Answered with ENOSYS: its flags lie in memory, and glibc then calls `clone`."""

WRITING_FLAGS = 0x00400243
"""O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, __O_TMPFILE, alike on both machines.

A job has its result open. Landlock before Linux 6.2 takes emptying a file for reading it.
"""
FCNTL_COMMANDS = (0, 1, 2, 3, 4, 5, 1030)
"""DUPFD GETFD SETFD GETFL SETFL GETLK DUPFD_CLOEXEC; not SETOWN and SETSIG, which can kill."""
IOCTL_REQUESTS = (0x5401, 0x5413, 0x541B, 0x5450, 0x5451)
"""TCGETS (is it a terminal), TIOCGWINSZ, FIONREAD, FIONCLEX, FIOCLEX."""
PRCTL_OPTIONS = (3, 15, 16, 0x53564D41)
"""GET_DUMPABLE SET_NAME GET_NAME SET_VMA; not PDEATHSIG, DUMPABLE or any that loosens."""

THREAD_FLAGS = 0x00010900
"""CLONE_VM, CLONE_SIGHAND, CLONE_THREAD: all three, or it is no thread."""
FORBIDDEN_FLAGS = 0x7E026000
"""CLONE_NEW…, CLONE_PTRACE and CLONE_VFORK."""
