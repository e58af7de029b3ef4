"""Which system calls change files, and which file does one of them mean? For Linux on x86-64."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

PATHS, AT_PATHS, HANDLES = "paths", "at paths", "handles"
CALLS = {
    1: ("write", HANDLES), 18: ("pwrite", HANDLES), 20: ("writev", HANDLES), 296: ("pwritev", HANDLES),
    328: ("pwritev2", HANDLES), 40: ("sendfile", HANDLES), 326: ("copy_file_range", HANDLES), 74: ("fsync", HANDLES),
    75: ("fdatasync", HANDLES), 77: ("ftruncate", HANDLES), 285: ("fallocate", HANDLES), 91: ("fchmod", HANDLES),
    2: ("open", PATHS), 85: ("open", PATHS), 76: ("truncate", PATHS), 82: ("rename", PATHS), 83: ("mkdir", PATHS),
    84: ("rmdir", PATHS), 86: ("link", PATHS), 87: ("unlink", PATHS), 88: ("symlink", PATHS), 90: ("chmod", PATHS),
    257: ("open", AT_PATHS), 258: ("mkdir", AT_PATHS), 263: ("unlink", AT_PATHS), 264: ("rename", AT_PATHS),
    265: ("link", AT_PATHS), 266: ("symlink", AT_PATHS), 268: ("chmod", AT_PATHS), 316: ("rename", AT_PATHS),
}  # fmt: skip
"""Number → what it does, and how its arguments name files."""
WRITES = frozenset({"write", "pwrite", "writev", "pwritev", "pwritev2", "sendfile", "copy_file_range"})
SHORTENED = frozenset({"write", "pwrite"})
"""Writes whose third argument is the number of bytes."""
TAKES_SPACE = WRITES | {"fallocate", "fsync", "fdatasync", "mkdir", "symlink", "link", "open"}
"""Calls that a full disk refuses; fsync since some file systems find out only then."""
CREATES = os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class Registers(ctypes.Structure):
    """`struct user_regs_struct`."""

    _fields_ = [
        *((name, ctypes.c_ulonglong) for name in ("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax")),
        *((name, ctypes.c_ulonglong) for name in ("rcx", "rdx", "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss")),
        *((name, ctypes.c_ulonglong) for name in ("fs_base", "gs_base", "ds", "es", "fs", "gs")),
    ]


@dataclass(frozen=True, slots=True)
class Call:
    """One call that changes files: `rename` has two paths, the others one."""

    what: str
    path: str
    to: str = ""
    size: int = 0


def call_of(process: int, registers: Registers) -> Call | None:
    """Return the call a stopped process is about to make; None where it changes no file."""
    number = registers.orig_rax
    if number not in CALLS:
        return None
    what, kind = CALLS[number]
    if kind == HANDLES:
        handle = registers.rsi if what == "sendfile" else registers.rdx if what == "copy_file_range" else registers.rdi
        return Call(what, _path_of_handle(process, _signed(handle)), size=registers.rdx)
    if kind == PATHS:
        if number == 2 and not registers.rsi & CREATES:
            return None
        one = _absolute(process, -100, _text(process, registers.rdi))
        to = _absolute(process, -100, _text(process, registers.rsi)) if what in ("rename", "link") else ""
        return Call(what, one, to)
    if number == 257 and not registers.rdx & CREATES:
        return None
    one = _absolute(process, _signed(registers.rdi), _text(process, registers.rsi))
    to = _absolute(process, _signed(registers.rdx), _text(process, registers.r10)) if what in ("rename", "link") else ""
    return Call(what, one, to)


def _signed(value: int) -> int:
    return ctypes.c_int(value & 0xFFFFFFFF).value


def _path_of_handle(process: int, handle: int) -> str:
    try:
        return str(Path(f"/proc/{process}/fd/{handle}").readlink()).removesuffix(" (deleted)")
    except OSError:
        return ""


def _absolute(process: int, folder: int, path: str) -> str:
    if not path.startswith("/"):
        link = f"/proc/{process}/cwd" if folder == -100 else f"/proc/{process}/fd/{folder}"
        path = str(Path(link).readlink() / path)
    return os.path.normpath(path)


def _text(process: int, address: int) -> str:
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        found = b""
        while b"\0" not in found and len(found) < 4096:
            memory.seek(address + len(found))
            found += memory.read(256 - (address + len(found)) % 256)  # never beyond the page
    return os.fsdecode(found.split(b"\0")[0])
