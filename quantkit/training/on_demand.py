"""How does transformers' Trainer come into memory without a library that no run of ours asks for?

It imports `datasets` where that is installed, and with it pandas and pyarrow, to ask whether its rows are of a class of theirs;
ours never are. So a module stands in while the Trainer is imported, and becomes the library at the first question asked of it:
whoever else uses the Trainer in this process notices nothing. Telling transformers that the library is not installed, the
alternative, would be untrue for them.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

LIBRARY = "datasets"


def trainer_class() -> Any:
    """Return transformers' `Trainer`."""
    spec = None if {LIBRARY, "transformers.trainer"} & sys.modules.keys() else find_spec(LIBRARY)
    if spec is not None:
        stand_in: Any = ModuleType(LIBRARY)
        stand_in.__spec__ = spec

        def asked(name: str) -> Any:
            if name in ("__file__", "__wrapped__"):  # `inspect` asks every module there is
                raise AttributeError(name)
            _remove(stand_in)
            return getattr(import_module(LIBRARY), name)

        stand_in.__getattr__ = asked
        sys.modules[LIBRARY] = stand_in
        try:
            import_module("transformers.trainer")
        finally:
            _remove(stand_in)
    return import_module("transformers").Trainer


def _remove(stand_in: ModuleType) -> None:
    if sys.modules.get(LIBRARY) is stand_in:
        del sys.modules[LIBRARY]
