"""How is a verb run from a program? As a command in a process of its own, whose answer is the object of its `--json`.

Its memory is then its own, whatever the caller holds, and its death nobody else's. Starting processes by `multiprocessing`, the
alternative, runs a caller's script again from the top wherever that has no `if __name__ == "__main__"`.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, cast

from quantkit.errors import QuantkitError, UsageError, VerificationError

ERROR = "error: "
"""What the line begins with that says why a verb failed."""
INTERRUPTED = 130
FAMILY = {kind.exit_code: kind for kind in (QuantkitError, UsageError, VerificationError)}


def command_line(words: Iterable[str]) -> list[str]:
    """Return the command that runs `quantkit WORDS…` with this Python."""
    return [sys.executable, "-P", "-m", "quantkit_tools.cli", *words]


def words_of(flags: Mapping[str, Any]) -> list[str]:
    """Return flags as a command line has them; None and False stand for a flag that is not given.

    >>> words_of({"limit": 0, "max_new_tokens": 8, "fresh": True, "data": None, "json": False})
    ['--limit', '0', '--max-new-tokens', '8', '--fresh']
    """
    words: list[str] = []
    for name, value in flags.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, tuple | list):
            words += [flag, *map(str, value)] if value else []
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return words


def why_ended(lines: Sequence[str], code: int) -> str:
    """Return the one line of a process's output that says why it failed; where there is none, how it ended."""
    said = next((line.removeprefix(ERROR) for line in reversed(lines) if line.startswith(ERROR)), "")
    if said:
        return said
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name} (killed, or out of memory)"
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing was printed")
    return f"exit code {code}: {last[:200]}"


def answer_of(words: Iterable[str]) -> dict[str, Any]:
    """Run a verb with `--json` and return the object it prints; its text for people goes on to this process's stderr.

    Raises:
        QuantkitError: it ended without an answer; the class is the one that its exit code stands for.
    """
    command = command_line([*words, "--json"])
    pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with (
        subprocess.Popen(command, text=True, errors="replace", **pipes) as process,
        ThreadPoolExecutor(max_workers=1) as reader,
    ):
        try:
            answer = reader.submit(cast(IO[str], process.stdout).read)
            lines = list(_passed_on(cast(IO[str], process.stderr)))
            code = process.wait()
        except BaseException:
            process.terminate()  # ends a verb as Ctrl-C does
            raise
    text = answer.result()
    if code >= 0 and text.strip():
        return cast(dict[str, Any], json.loads(text))
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    raise error_of(code, why_ended(lines, code))


def error_of(code: int, text: str) -> QuantkitError:
    """Return the error of the class that an exit code stands for."""
    return FAMILY.get(code, QuantkitError)(text)


def _passed_on(stream: IO[str]) -> Iterable[str]:
    for line in stream:
        if not line.startswith(ERROR):
            print(line, end="", file=sys.stderr)
        yield line.rstrip("\n")
