"""System calls made in the name of another process, stopped for that moment (ptrace, x86-64).

The process waits in `read`; its last instruction was a system call. We let it make another one from there, with
registers of ours: to the kernel this is the process's own call, and so it is to a seccomp filter.
"""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass
from types import TracebackType
from typing import Final

_ATTACH, _DETACH, _CONTINUE, _TO_CALL = 16, 17, 7, 24
_GET_REGISTERS, _SET_REGISTERS, _GET_SIGNAL, _POKE_TEXT = 12, 13, 0x4202, 4
_WAIT_ALL: Final = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


class _Registers(ctypes.Structure):
    """`struct user_regs_struct`."""

    _fields_ = [
        (name, ctypes.c_ulonglong)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
            *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]


@dataclass(frozen=True, slots=True)
class Refused:
    """The filter did not let the call pass: the process got SIGSYS, with the number of the call."""

    call: int


@dataclass(frozen=True, slots=True)
class Killed:
    """The process was killed by a signal before it could do anything about it."""

    signal: int


class Stopped:
    """A process that is held while we call in its name. In the end it goes on, with the signal it got, if any."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._signal = 0
        self._is_gone = False

    def __enter__(self) -> Stopped:
        _ptrace(_ATTACH, self._pid)
        self._wait()
        self._before = self._read_registers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._is_gone:
            if self._signal == 0:
                self._write_registers(self._before)
            _ptrace(_DETACH, self._pid, 0, self._signal)

    def call(self, number: int, *arguments: int, instruction: bytes = b"\x0f\x05") -> int | Refused | Killed:
        """Make a system call; return its result (negative: an errno), or how it was refused. After a refusal no other
        call can be made. ``instruction``: `syscall`, or `int 0x80` for the 32-bit entrance.
        """
        registers = self._read_registers()
        at = self._before.rip - 2
        if instruction != b"\x0f\x05":
            word = int.from_bytes(_read_memory(self._pid, at, 8), "little")
            _ptrace(_POKE_TEXT, self._pid, at, word & ~0xFFFF | int.from_bytes(instruction, "little"))
        registers.rip = at
        registers.rax = number
        registers.orig_rax = (1 << 64) - 1  # not in a call, so that none is restarted
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), (*arguments, *[0] * 6), strict=False):
            setattr(registers, name, value & (1 << 64) - 1)
        if instruction != b"\x0f\x05":
            registers.rbx, registers.rcx, registers.rdx = (*arguments, 0, 0, 0)[:3]
        self._write_registers(registers)
        for _ in ("stops before the call", "and after it"):
            _ptrace(_TO_CALL, self._pid)
            status = self._wait()
            if not os.WIFSTOPPED(status) or os.WSTOPSIG(status) != signal.SIGTRAP:
                break
        if os.WIFSIGNALED(status):
            self._is_gone = True
            return Killed(os.WTERMSIG(status))
        if os.WIFEXITED(status):
            self._is_gone = True
            raise AssertionError(f"call {number} ended the process")
        if os.WSTOPSIG(status) == signal.SIGSEGV:
            self._signal = signal.SIGSEGV
            return Killed(signal.SIGSEGV)
        assert os.WSTOPSIG(status) == signal.SIGTRAP, f"signal {os.WSTOPSIG(status)} from call {number}"
        if self._has_pending(signal.SIGSYS):
            _ptrace(_CONTINUE, self._pid)
            status = self._wait()
            if os.WIFSIGNALED(status):
                self._is_gone = True
                return Killed(os.WTERMSIG(status))
            assert os.WSTOPSIG(status) == signal.SIGSYS
            self._signal = signal.SIGSYS
            return Refused(self._read_call_of_signal())
        return ctypes.c_longlong(self._read_registers().rax).value

    def free_stack(self) -> int:
        """Return an address well below the stack pointer that may be written."""
        return int(self._before.rsp) - 4096 & ~0xFFF

    def write_memory(self, at: int, content: bytes) -> None:
        with open(f"/proc/{self._pid}/mem", "r+b", buffering=0) as memory:
            memory.seek(at)
            memory.write(content)

    def _read_registers(self) -> _Registers:
        registers = _Registers()
        _ptrace(_GET_REGISTERS, self._pid, 0, ctypes.addressof(registers))
        return registers

    def _write_registers(self, registers: _Registers) -> None:
        _ptrace(_SET_REGISTERS, self._pid, 0, ctypes.addressof(registers))

    def _read_call_of_signal(self) -> int:
        """`si_syscall` of the signal that stopped the process."""
        info = (ctypes.c_ubyte * 128)()
        _ptrace(_GET_SIGNAL, self._pid, 0, ctypes.addressof(info))
        return int.from_bytes(bytes(info[24:28]), "little")

    def _has_pending(self, number: int) -> bool:
        with open(f"/proc/{self._pid}/status") as status:
            pending = [int(line.split()[1], 16) for line in status if line.startswith(("SigPnd", "ShdPnd"))]
        return any(mask >> number - 1 & 1 for mask in pending)

    def _wait(self) -> int:
        return os.waitpid(self._pid, _WAIT_ALL)[1]


def _read_memory(pid: int, at: int, size: int) -> bytes:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(at)
        return memory.read(size)


def _ptrace(request: int, pid: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"ptrace({request}): {os.strerror(number)}")
