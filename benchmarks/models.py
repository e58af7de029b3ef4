"""On which model is measured? One the command line names, the tests' model of 0.6 M parameters, or SmolLM2-135M."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def model_folder(named: str | None, *, quick: bool) -> str:
    """Return the folder of the model, made or fetched if needed."""
    if named is not None:
        return named
    if quick:
        sys.path.insert(0, str(ROOT))
        from tests.tiny import tiny_model_folder

        return str(tiny_model_folder())
    from quantkit_tools.demo_model import real_model

    return str(real_model(ROOT / "demo" / "model"))
