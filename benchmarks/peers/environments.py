"""Where do the peers live? Each in a virtual environment of its own, made once by pip and named after what is in it.

Their pins contradict this project's and one another's (llm-compressor wants an older transformers, GPTQModel a newer
torch), so one environment for all would measure none of them as its authors test it.
"""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from quantkit.console import say
from quantkit.errors import QuantkitError
from quantkit.files import read_json, write_json

TORCH = ("torch==2.13.0",)
"""First and alone: the CPU build where the index offers one, so that no peer pulls a CUDA build over it."""
STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "llmcompressor": (TORCH, ("llmcompressor==0.14.0",)),
    "gptqmodel": (
        ("torch>=2.14.1", "setuptools", "wheel", "ninja", "packaging", "numpy"),
        ("transformers==5.23.0", "accelerate", "optimum", "pypcre"),
        ("--no-build-isolation", "gptqmodel==7.7.0"),
    ),
    "hqq": (
        (*TORCH, "setuptools", "wheel", "ninja"),
        ("transformers==5.23.0", "accelerate"),
        ("--no-build-isolation", "hqq==0.2.8.post1"),
    ),
    "autoround": (TORCH, ("transformers==5.23.0", "auto-round==0.16.1")),
    "trl": (TORCH, ("transformers==5.23.0", "peft==0.21.2", "bitsandbytes==0.50.2", "trl==1.16.0")),
}
"""Peer → the arguments of each `pip install`, in order."""
PACKAGES = {"llmcompressor": "llmcompressor", "gptqmodel": "gptqmodel", "hqq": "hqq", "autoround": "auto-round", "trl": "trl"}
"""Peer → the distribution whose version stands in the table."""
READY = "ready.json"


def peer_python(peer: str, cache: Path) -> tuple[Path, dict[str, str]]:
    """Return the interpreter of a peer's environment and the versions in it; make the environment if it is not there.

    Raises:
        QuantkitError: pip could not install it; carries pip's last line.
    """
    key = hashlib.sha256(repr((STEPS[peer], sys.version_info[:2])).encode()).hexdigest()[:8]
    folder = cache / f"{peer}-{key}"
    python = folder / "bin" / "python"
    if (folder / READY).is_file():
        return python, dict(read_json(folder / READY))
    say(f"{peer}: making its environment in {folder} (once)")
    venv.create(folder, with_pip=True, clear=True)
    for step in STEPS[peer]:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step], peer)
    listed = _run([str(python), "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"], peer)
    versions = dict(line.lower().split("==", 1) for line in listed.splitlines() if "==" in line)
    write_json(folder / READY, versions)
    return python, versions


def default_cache() -> Path:
    """Return the folder of environments and results: `$XDG_CACHE_HOME/quantkit`, by default `~/.cache/quantkit`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantkit"


def _run(command: list[str], peer: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        errors = [line for line in lines if line.lower().startswith("error")]
        raise QuantkitError(f"{peer}: {(errors or lines)[-1].strip()}")
    return done.stdout
