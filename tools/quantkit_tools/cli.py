"""What does `quantkit VERB` run, and how does it end? A table of verbs; each one's module is imported only when asked for.

Scripts end as verbs do, by `in_one_line`: a wrong path in a script's constants is one line and exit code 2 there, too.
"""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from types import FrameType

from quantkit.console import use_stdout
from quantkit.errors import QuantkitError, UsageError, did_you_mean
from quantkit.layout import printable

VERBS = {
    "train": "fine-tune, merge, save: the whole run from flags or a file",
    "plan": "memory and time of a run, and what fits, before anything is loaded",
    "preflight": "what is wrong with a run's data, before any weights are read",
    "quantize": "make a finished model small, judged against its source",
    "merge": "fold a kept adapter into its base, and say what that cost",
    "export": "can this be served or had in that format, exactly or not; made where it is exact",
    "evaluate": "detect, load and score artifacts",
    "sweep": "methods x adapters x merges x seeds from one file, to one report",
    "audit": "what in these results cannot be believed, and why",
    "report": "results side by side: table, CSV, JSON, one HTML page",
    "methods": "list quantization methods and whether they work here",
    "registry": "ls, tree, show, verify, lineage, detect, adopt: what is in these folders",
    "doctor": "what will break in this environment, and a description of it for an issue",
    "demo": "the whole tour on a small real model, on this machine",
}
HELP_FLAGS = ("-h", "--help", "help")


def usage() -> str:
    """Return the text of `quantkit --help`."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {name:<{width}}{summary}" for name, summary in VERBS.items())
    return f"usage: quantkit VERB [OPTIONS]\n\n{verbs}\n\nquantkit VERB --help says more; quantkit --version names the version."


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return its exit code: 0 success, 1 failed, 2 usage, 3 a check did not hold, 130 interrupted."""
    use_stdout()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in HELP_FLAGS:
        print(usage())
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb == "--version":
        from quantkit import __version__

        print(f"quantkit {__version__}")
        return 0
    return run_verb(verb, rest)


def run_verb(verb: str, arguments: list[str]) -> int:
    """Import the verb's module, run its `main` as `in_one_line` does, and return the exit code."""

    def run() -> int:
        if verb not in VERBS:
            raise UsageError(f"no verb is called {verb!r}.{did_you_mean(verb, VERBS)} Known: {', '.join(VERBS)}.")
        return int(import_module(f"quantkit_tools.{verb}").main(arguments))

    return in_one_line(run)


def in_one_line(run: Callable[[], int]) -> int:
    """Return what `run` returns; errors of quantkit's family and of the system become one line on stderr and an exit code.

    SIGTERM ends it as Ctrl-C does, so that nothing half-written stays; the signal's default would end it on the spot.
    Characters that the encoding of the output lacks are printed as `?`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    before = signal.signal(signal.SIGTERM, _interrupt) if threading.current_thread() is threading.main_thread() else None
    try:
        return run()
    except QuantkitError as error:
        return _told(str(error), error.exit_code)
    except BrokenPipeError:
        _read_no_more()
        return 0
    except OSError as error:
        if error.errno is None:  # raised by a library, about something else than the system
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        return _told(f"{where}{error.strerror}", QuantkitError.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _told(text: str, code: int) -> int:
    print(f"error: {printable(' '.join(text.split()))}", file=sys.stderr)
    return code


def _read_no_more() -> None:
    """Send what is still to be printed nowhere; the interpreter would complain of the closed pipe when it ends."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout is sys.__stdout__:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
