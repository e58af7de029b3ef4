"""Can `python -m quantkit` do what the command does? It runs the installed `quantkit` command, found by its entry point.

The core may not import its tools, so it asks the distribution for them; a copy of the verbs here would be a second truth.
"""

import sys
from importlib.metadata import entry_points


def main() -> int:
    """Run the command and return its exit code; 2 where quantkit is on the path but was never installed."""
    for command in entry_points(group="console_scripts", name="quantkit"):
        return int(command.load()() or 0)
    print("error: quantkit is not installed here, only importable; install it: pip install .", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
