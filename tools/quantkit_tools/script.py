"""How does a script whose constants are a run's settings end? As `quantkit train` does: errors in one line, its exit codes.

Called as they stand, the steps would show whoever misspells a path a traceback, and end with code 1 whatever was wrong.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from quantkit.config import RunConfig
from quantkit.errors import UsageError
from quantkit_tools.cli import in_one_line
from quantkit_tools.train import run


def run_script(constants: Mapping[str, Any], arguments: Sequence[str]) -> int:
    """Carry out the run that a script's constants describe, and return the exit code; flags are refused, not passed over."""

    def start() -> int:
        if arguments:
            raise UsageError(f"the script takes no flags, found {arguments[0]}; edit its constants, or use quantkit train")
        return run(RunConfig.from_constants(constants))

    return in_one_line(start)
