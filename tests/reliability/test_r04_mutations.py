"""Files with a few bytes changed are read, or refused in one line: no reader fails in a third way, whichever bytes they are."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit.data.readers import read_file
from quantkit.errors import QuantkitError
from quantkit.files import read_manifest
from quantkit.headers.gguf import read_gguf
from quantkit.runfiles import read_run_values
from quantkit_registry.detect import detect
from quantkit_registry.records import read_record
from quantkit_registry.store import Registry
from tests.registry import samples
from tests.registry.records_of import commit_adapter
from tests.reliability.promises import amount

Reader = Callable[[Path], Any]
TOKENS = (
    b"null",
    b"-1",
    b"1e999",
    b"NaN",
    b'"',
    b"{}",
    b"[]",
    b"\xff",
    b"\x00",
    b"99999999999999999999",
    b"../",
    b"true",
    b"\\u0000",
)
CLAIMS = {"dense": "NoQuant"}


def spoilt(data: bytes, chance: random.Random) -> bytes:
    """Return the bytes with one to four of them flipped, cut out, doubled, or replaced by a word that readers dislike."""
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at, length = chance.randrange(len(spoilt) + 1), chance.choice((1, 1, 2, 8, 64))
        match chance.randrange(5):
            case 0 if at < len(spoilt):
                spoilt[at] ^= 1 << chance.randrange(8)
            case 1:
                del spoilt[at : at + length]
            case 2:
                spoilt[at:at] = spoilt[at : at + length]
            case 3:
                spoilt[at : at + length] = chance.choice(TOKENS)
            case _:
                spoilt = spoilt[:at] if chance.random() < 0.2 else spoilt
    return bytes(spoilt)


def files(root: Path) -> list[tuple[Path, Reader]]:
    """Return good files, and who reads each of them."""
    rows = [{"question": "1+1?", "answer": "2", "n": number, "tags": ["a", {"b": None}]} for number in range(5)]
    texts = {
        "rows.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "rows.json": json.dumps({"data": rows}),
        "rows.csv": 'question,answer\n"1+1?","2"\n"a ""b""",c\n',
        "run.json": json.dumps({"fast": {"lora_r": 4, "target_modules": ["q_proj"]}, "slow": {"seed": 1}}),
        "run.yaml": "fast:\n  lora_r: 4\n  target_modules: [q_proj, v_proj]\nslow: {seed: 1}\n",
        "run.toml": '[fast]\nlora_r = 4\ntarget_modules = ["q_proj"]\n',
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    (root / "model.gguf").write_bytes(
        b"GGUF\x03\x00\x00\x00" + bytes(8) + (1).to_bytes(8, "little") + (20).to_bytes(8, "little") + b"general.architecture"
        b"\x08\x00\x00\x00" + (5).to_bytes(8, "little") + b"llama"
    )
    dense, quantized = samples.dense(root / "dense"), samples.adapter(root / "adapter")
    ours = commit_adapter(root / "registry")

    def detected(path: Path) -> Any:
        return detect(path.parent, claims=CLAIMS)

    def listed(path: Path) -> Any:
        return Registry(path.parent.parent).entries()

    found: list[tuple[Path, Reader]] = [
        (root / name, read_file if name.startswith("rows") else read_run_values) for name in texts
    ]
    found += [(root / "model.gguf", read_gguf), (dense / "config.json", detected), (dense / "model.safetensors", detected)]
    found += [(quantized / "adapter_config.json", detected), (quantized / "adapter_model.safetensors", detected)]
    record = ours / "quantization_metadata.json"
    found += [(record, lambda path: read_record(path.parent)), (record, listed)]
    manifest = ours / "quantkit_manifest.json"
    return [*found, (manifest, lambda path: read_manifest(path.parent)), (manifest, listed)]


def test_a_reader_reads_or_refuses_whatever_the_bytes_are(tmp_path: Path) -> None:
    good = files(tmp_path)
    kept = {path: path.read_bytes() for path, _ in good}
    chance = random.Random(8)
    refused = 0
    for number in range(amount(1500, 10_000)):
        path, read = good[number % len(good)]
        data = kept[path]
        header = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else len(data)
        content = spoilt(data[:header], chance) + data[header:]
        path.write_bytes(content)
        try:
            read(path)
        except QuantkitError as error:
            refused += 1
            if len(str(error).splitlines()) != 1:
                pytest.fail(f"{path.name} number {number}: not one line: {error}")
        except Exception as error:
            pytest.fail(f"{path.name} number {number}: {type(error).__name__}: {error}: {content[:300]!r}")
        finally:
            path.write_bytes(data)
    assert refused > amount(1500, 10_000) / 4
    shutil.rmtree(tmp_path)
