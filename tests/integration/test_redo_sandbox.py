"""From inside of the WAL redo process nothing can be reached (design.md 6, stock.md 5).

The calls are made by real redo processes in their real sandbox: we stop one with ptrace and let it execute a system
call of ours, which the kernel judges as the process's own (`injected_calls`). Each call that is refused ends the
process with a line on standard error; the tenant's next request starts another.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import tempfile
from pathlib import Path

import pytest

from tests.integration.injected_calls import Killed, Refused, Stopped
from tests.integration.test_redo_process import World, scratch, world  # noqa: F401 (fixtures)
from tests.integration.test_redo_process_misbehaves import ask, expected, is_alive, wait_for
from tests.postgres.provision import MAJORS_WITH_HEADERS

with_headers = pytest.mark.parametrize("major", MAJORS_WITH_HEADERS)

PATH = b"/etc/passwd\0"
PATH_AT = -1
"""Stands for the address of PATH in the process."""

AT_FDCWD = -100
CALLS: dict[str, tuple[int, ...]] = {
    "open": (2, PATH_AT, os.O_RDONLY),
    "openat": (257, AT_FDCWD, PATH_AT, os.O_RDONLY),
    "openat2": (437, AT_FDCWD, PATH_AT, PATH_AT, 24),
    "creat": (85, PATH_AT, 0o600),
    "unlink": (87, PATH_AT),
    "rename": (82, PATH_AT, PATH_AT),
    "mkdir": (83, PATH_AT, 0o700),
    "stat": (4, PATH_AT, PATH_AT),
    "readlink": (89, PATH_AT, PATH_AT, 1),
    "ftruncate": (77, 1, 0),
    "socket": (41, socket.AF_INET, socket.SOCK_STREAM, 0),
    "socketpair": (53, socket.AF_UNIX, socket.SOCK_STREAM, 0, PATH_AT),
    "connect": (42, 0, PATH_AT, 16),
    "sendto": (44, 1, PATH_AT, 4, 0, 0, 0),
    "fork": (57,),
    "vfork": (58,),
    "clone": (56, signal.SIGCHLD),
    "clone3": (435, PATH_AT, 64),
    "execve": (59, PATH_AT, 0, 0),
    "execveat": (322, AT_FDCWD, PATH_AT, 0, 0, 0),
    "ptrace": (101, 16, 1),
    "process_vm_readv": (310, 1, PATH_AT, 1, PATH_AT, 1, 0),
    "kill": (62, 1, 0),
    "tgkill of another": (234, 1, 1, signal.SIGKILL),
    "tkill": (200, 1, signal.SIGKILL),
    "pidfd_open": (434, 1, 0),
    "setuid": (105, 0),
    "prctl": (157, 4, 1),
    "setrlimit": (160, 7, PATH_AT),
    "prlimit64": (302, 0, 7, PATH_AT, 0),
    "seccomp": (317, 1, 0, PATH_AT),
    "memfd_create": (319, PATH_AT, 0),
    "io_uring_setup": (425, 8, PATH_AT),
    "bpf": (321, 0, PATH_AT, 8),
    "mprotect": (10, 0, 4096, mmap.PROT_READ | mmap.PROT_EXEC),
    "mmap of code": (9, 0, 4096, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0),
    "mmap of a file": (9, 0, 4096, mmap.PROT_READ, mmap.MAP_PRIVATE, 0, 0),
    "shmget": (29, 1, 4096, 0o1600),
    "shmat": (30, 0, 0, 0),
    "dup": (32, 0),
    "pipe": (22, PATH_AT),
    "eventfd2": (290, 0, 0),
    "ioctl": (16, 0, 0x5412, PATH_AT),
    "mount": (165, PATH_AT, PATH_AT, 0, 0, 0),
    "an x32 open": (0x40000002, PATH_AT, os.O_RDONLY),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_redo_does_not_need_ends_the_process(name: str, world: World) -> None:  # noqa: F811
    refuse(world, MAJORS_WITH_HEADERS[-1], name)


@with_headers
@pytest.mark.parametrize("name", ["openat", "socket", "fork", "clone", "execve", "ptrace"])
def test_files_sockets_processes_and_their_memory_are_out_of_reach(major: int, name: str, world: World) -> None:  # noqa: F811
    refuse(world, major, name)


def refuse(world: World, major: int, name: str) -> None:  # noqa: F811
    """Make the call in the process, which must be refused and end it, and ask for a page afterwards."""
    number, *arguments = CALLS[name]
    pool = world.pool()
    assert ask(pool, major) == expected()
    pid = pool.pid()
    assert pid is not None
    with Stopped(pid) as process:
        assert process.call(39) == pid, "getpid is allowed, and this is how calls are made"
        at = process.free_stack()
        process.write_memory(at, PATH)
        given = [at if argument == PATH_AT and name != "mmap of code" else argument for argument in arguments]
        assert process.call(number, *given) == Refused(number)
    assert wait_for(lambda: has_ended(pid))
    assert ask(pool, major, seed=2) == expected(2)
    said = [fields["output"] for event, fields in world.log if event == "received output"]
    assert f"walredo: seccomp: bad syscall {number % 10000:04}" in said, said


def has_ended(pid: int) -> bool:
    """A zombie counts: the pool reaps it with the next request."""
    return not is_alive(pid) or ") Z " in Path(f"/proc/{pid}/stat").read_text()


@with_headers
def test_the_32_bit_entrance_is_closed(major: int, world: World) -> None:  # noqa: F811
    """Goal: numbers of another architecture, which mean other calls, do not pass. 5 is `open` there, `fstat` here."""
    pool = world.pool()
    ask(pool, major)
    pid = pool.pid()
    assert pid is not None
    with Stopped(pid) as process:
        outcome = process.call(5, 0, 0, 0, instruction=b"\xcd\x80")
    # A kernel without that entrance knows no such instruction.
    assert outcome in (Killed(signal.SIGSYS), Killed(signal.SIGSEGV))
    assert ask(pool, major) == expected()


@with_headers
def test_the_process_has_its_pipes_its_limits_and_nothing_from_its_parent(
    major: int,
    world: World,  # noqa: F811
) -> None:
    """Goal: no descriptor of the server, whatever was left inheritable; limits that the kernel enforces."""
    pool = world.pool()
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as file, socket.socket() as listening:
        leaked = [reading, writing, file.fileno(), listening.fileno()]
        for descriptor in leaked:
            os.set_inheritable(descriptor, True)
        # Numbers that the process will not use itself.
        high = [os.dup2(descriptor, 200 + index, inheritable=True) for index, descriptor in enumerate(leaked)]
        ask(pool, major)
        pid = pool.pid()
        assert pid is not None
        targets = {path.name: os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()}
        ours = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in leaked}
        for descriptor in (*high, reading, writing):
            os.close(descriptor)
    assert all(targets[number].startswith("pipe:") for number in ("0", "1", "2"))
    assert not ours & set(targets.values())
    assert not {"200", "201", "202", "203"} & set(targets)
    files = [target for number, target in targets.items() if number not in ("0", "1", "2")]
    assert len(files) == 6 and all("/base/1/9999" in target for target in files), targets
    assert files[0].startswith("/dev/shm/"), "the scratch directory is in memory"

    limits = {line[:26].strip(): line[26:].split() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert limits["Max open files"][:2] == ["0", "0"]
    assert limits["Max processes"][:2] == ["0", "0"]
    assert limits["Max core file size"][:2] == ["0", "0"]
    assert int(limits["Max file size"][1]) <= 1 << 20
    used = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * mmap.PAGESIZE
    assert used < int(limits["Max address space"][1]) <= used + (300 << 20)
    with Stopped(pid) as process:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        assert isinstance(given := process.call(9, 0, 1 << 20, mmap.PROT_READ, flags, -1, 0), int) and given > 0
        assert process.call(9, 0, 512 << 20, mmap.PROT_READ, flags, -1, 0) == -12, "ENOMEM beyond the limit"
    assert ask(pool, major, seed=3) == expected(3)
    assert pool.pid() == pid, "the process goes on after all this"
