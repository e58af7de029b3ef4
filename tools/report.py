import sys

from quantkit_tools.cli import run_verb

if __name__ == "__main__":
    sys.exit(run_verb("report", sys.argv[1:]))
