"""Run a copy of this process, stop it before each call that changes files, and do something to the k-th."""

import ctypes
import errno
import os
import platform
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.reliability.faults.calls import CALLS, SHORTENED, TAKES_SPACE, WRITES, Call, Registers, call_of

Fault = Literal["none", "kill", "full", "short"]
TRACEME, GETREGS, SETREGS, CONT, SETOPTIONS = 0, 12, 13, 7, 0x4200
EXITKILL, TRACESECCOMP, TRACECLONE, TRACEFORK, TRACEVFORK = 0x100000, 0x80, 0x8, 0x2, 0x4
EVENT_SECCOMP = 7
WALL = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


@dataclass(slots=True)
class Seen:
    """How a watched copy ended."""

    code: int
    """Its exit code; minus the signal's number where one ended it."""
    said: str
    """Its stderr."""
    calls: list[Call] = field(default_factory=list)
    """All calls under the root, the one that was the k-th included, in order."""
    hit: bool = False
    """Whether there was a k-th call for the fault to happen to."""


def watched(action: Callable[[], object], root: Path, *, fault: Fault = "none", at: int = 0) -> Seen:
    """Run `action` in a copy of this process; exit code 0 where it returns, that of a quantkit error, 70 for any other.

    `at` counts from 1, over the calls under `root` that the fault is about: `kill` before any of them; `full` from the k-th
    on that takes space, all fail with "No space left on device"; `short`: the k-th write takes half of its bytes, and the
    disk is full from then on.
    """
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _be_watched(action, errors.fileno())
        seen = _watch(child, os.path.realpath(root), fault, at)
        errors.seek(0)
        seen.said = errors.read().decode(errors="replace")
    return seen


def _watch(child: int, root: str, fault: Fault, at: int) -> Seen:
    seen, count, last = Seen(-1, ""), 0, {child}
    os.waitpid(child, WALL)
    _ptrace(SETOPTIONS, child, EXITKILL | TRACESECCOMP | TRACECLONE | TRACEFORK | TRACEVFORK)
    _ptrace(CONT, child, 0)
    while last:
        process, status = os.waitpid(-child, WALL)  # the copy leads a group of its own: threads and children are in it
        if not os.WIFSTOPPED(status):
            last.discard(process)
            if process == child:
                seen.code = os.waitstatus_to_exitcode(status)
                break
            continue
        last.add(process)
        stopped, event = os.WSTOPSIG(status), status >> 16
        if event == EVENT_SECCOMP:
            registers = Registers()
            _libc.ptrace(GETREGS, process, None, ctypes.byref(registers))
            call = call_of(process, registers)
            if call is not None and _within(call, root):
                seen.calls.append(call)
                count += _counts(call, fault)
                if fault != "none" and count >= at and _counts(call, fault):
                    seen.hit = True
                    _strike(process, registers, call, fault, first=count == at, child=child)
        deliver = 0 if event or stopped in (signal.SIGTRAP, signal.SIGSTOP) else stopped
        _ptrace(CONT, process, deliver)
    return seen


def _counts(call: Call, fault: Fault) -> bool:
    return fault == "kill" or (call.what in TAKES_SPACE if fault == "full" else call.what in WRITES)


def _strike(process: int, registers: Registers, call: Call, fault: Fault, *, first: bool, child: int) -> None:
    if fault == "kill":
        os.kill(child, signal.SIGKILL)
        return
    if fault == "short" and first and call.what in SHORTENED and call.size > 1:
        registers.rdx = call.size // 2
    else:
        registers.orig_rax = 0xFFFFFFFFFFFFFFFF  # no call at all; this is what it returns
        registers.rax = (1 << 64) - errno.ENOSPC
    _libc.ptrace(SETREGS, process, None, ctypes.byref(registers))


def _within(call: Call, root: str) -> bool:
    return any(path == root or path.startswith(root + "/") for path in (call.path, call.to))


def _ptrace(request: int, process: int, value: int) -> None:
    _libc.ptrace(request, process, None, ctypes.c_void_p(value))


def _be_watched(action: Callable[[], object], errors: int) -> None:
    from quantkit.errors import QuantkitError

    code = 70
    try:
        os.setpgid(0, 0)
        os.dup2(errors, 2)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        sys.stdout = sys.stderr
        _libc.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        _stop_at_calls()
        action()
        code = 0
    except QuantkitError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _stop_at_calls() -> None:
    """Let the kernel stop this process, and all it starts, at the calls of `CALLS` only (seccomp with SECCOMP_RET_TRACE)."""

    class Rule(ctypes.Structure):
        _fields_ = [("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("value", ctypes.c_uint)]

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("rules", ctypes.POINTER(Rule))]

    load, equal, answer = 0x20, 0x15, 0x06
    rules = [Rule(load, 0, 0, 0)]
    for left, number in zip(range(len(CALLS), 0, -1), CALLS, strict=True):
        rules.append(Rule(equal, left, 0, number))
    rules += [Rule(answer, 0, 0, 0x7FFF0000), Rule(answer, 0, 0, 0x7FF00000)]
    listed = (Rule * len(rules))(*rules)
    program = Program(len(rules), listed)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    if _libc.prctl(no_new_privileges, 1, 0, 0, 0) or _libc.prctl(set_seccomp, filter_mode, ctypes.byref(program)):
        raise OSError(ctypes.get_errno(), "seccomp")


def _may_watch() -> bool:
    """Whether this system lets a process watch a copy of itself; containers may forbid ptrace or seccomp."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = int(_libc.ptrace(TRACEME, 0, None, None) != 0)
            _stop_at_calls()
        except BaseException:
            code = 1
        finally:
            os._exit(code)
    return os.waitpid(child, WALL)[1] == 0


CAN_WATCH = sys.platform.startswith("linux") and platform.machine() == "x86_64" and _may_watch()
