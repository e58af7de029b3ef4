"""Make the golden artifacts of this version: `python -m tests.golden.make_golden`, once for each release, and keep them.

A Llama of 0.1 M parameters goes the whole road: a QLORA adapter that is kept, its merge in 16 bit, that quantized, a result,
and what each of them says to a fixed prompt. What is there already is not made again: it must load as it was written.
"""

import json
import os
import platform
import shutil
import sys
import tempfile
from functools import partial
from pathlib import Path

from quantkit import __version__
from quantkit.data.arithmetic import arithmetic_data
from quantkit.files import MANIFEST, artifact_hash, write_json, write_manifest
from quantkit_registry.store import RESULTS
from quantkit_tools.cli import run_verb
from tests import tiny
from tests.golden.outputs import outputs

FOLDER = Path(__file__).parent
NEUTRAL = "/golden"
"""Stands in records for the folder in which the artifacts were made; of the machine only its system is kept."""
ADAPTER = "Micro-Llama-openmath_SFT_LoRa4_QLORA_w4_headbf16"


def make(work: Path) -> None:
    """Make base, artifacts and result under a working folder."""
    whole = tiny.tiny_config
    small = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    tiny.tiny_config = partial(whole, **small, num_key_value_heads=1)
    base, root = work / "Micro-Llama", work / "artifacts"
    tiny._build(base)
    rows = work / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in arithmetic_data(train=64).train))
    data, merged = f"openmath:{rows}", root / f"{ADAPTER}_mergedbf16"
    training = ["--model-name-or-path", str(base), "--dataset-name", data, "--quant-method", "QLORA", "--lora-r", "4"]
    steps = (
        ("train", [*training, "--max-steps", "16", "--merge-after-train", "false", "--output-dir", str(root)]),
        ("merge", [str(root / ADAPTER), "--dst", str(root)]),
        ("quantize", ["--src", str(merged), "--quant-method", "RTN", "--group-size", "32", "--dst", str(root)]),
        ("evaluate", [str(merged), "--data", data, "--registry", str(root), "--max-new-tokens", "32", "--limit", "16"]),
    )
    for verb, arguments in steps:
        code = run_verb(verb, arguments)
        assert code in (0, 3), (verb, code)  # so small a model may be degenerate


def keep(work: Path, target: Path) -> None:
    """Copy what was made, with a neutral place in its records, and write what each model says."""
    shutil.copytree(work / "Micro-Llama", target / "Micro-Llama")
    shutil.copytree(work / "artifacts", target / "artifacts", ignore=shutil.ignore_patterns(".*", "README.md"))
    said, known = {}, {str(work): NEUTRAL, platform.platform(): platform.system()}
    made = sorted((target / "artifacts").glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime_ns)
    for folder in (manifest.parent for manifest in made):  # in the order in which they were made from each other
        before = str(artifact_hash(folder))
        _replace(folder, known)
        write_manifest(folder)
        known[before] = str(artifact_hash(folder))
    for folder in (target / "artifacts" / RESULTS).iterdir():
        _replace(folder, known)
        folder.rename(folder.with_name(known[folder.name]))
    for folder in (manifest.parent for manifest in made):
        adapter = (folder / "adapter_config.json").is_file()
        said[folder.name] = outputs(folder, target / "Micro-Llama" if adapter else None)
    write_json(target / "outputs.json", said)


def _replace(folder: Path, words: dict[str, str]) -> None:
    """Put the neutral place, and hashes of folders that name it, into the JSON files of a folder."""
    for path in folder.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        for old, new in words.items():
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def main() -> int:
    """Make the artifacts of this version unless they are there."""
    target = FOLDER / __version__
    if target.exists():
        print(f"{target} is there already; golden artifacts are never made again")
        return 1
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as work:
        make(Path(work).resolve())
        keep(Path(work).resolve(), target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
