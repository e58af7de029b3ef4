"""What does `quantkit VERB` run? A table of verbs; each verb's module is imported only when it is asked for."""

import signal
import sys
import threading
from importlib import import_module
from types import FrameType

from quantkit.console import use_stdout
from quantkit.errors import QuantkitError, did_you_mean
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
    """Import the verb's module and run its `main`; errors of quantkit's family become one line on stderr.

    SIGTERM ends it as Ctrl-C does, so that nothing half-written stays; the signal's default would end it on the spot.
    """
    before = signal.signal(signal.SIGTERM, _interrupt) if threading.current_thread() is threading.main_thread() else None
    try:
        if verb not in VERBS:
            from quantkit.errors import UsageError

            raise UsageError(f"no verb is called {verb!r}.{did_you_mean(verb, VERBS)} Known: {', '.join(VERBS)}.")
        return int(import_module(f"quantkit_tools.{verb}").main(arguments))
    except QuantkitError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
