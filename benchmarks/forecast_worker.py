"""What runs in a process of its own: one training by `quantkit train`, with the models and rows of a benchmark made before.

    python benchmarks/forecast_worker.py SETTINGS.json …

Importing the libraries takes longer than two steps do, so it is done once: every run is forked from a process that has imported
them and done nothing else. A forked process does not have the pages of libraries mapped that its parent has, which would count
for its resident memory; they are mapped first. Forked and fresh runs then measure the same (`--fresh` of the benchmark).
"""

import ctypes
import json
import mmap
import os
import random
import struct
import sys
import traceback
from pathlib import Path
from typing import Any

from forecast_cases import COMMON, SMALL

PAGE = mmap.PAGESIZE
MAPS, PAGEMAP = Path("/proc/self/maps"), Path("/proc/self/pagemap")
LEARNT_SHARE = 0.5
"""Share of a row's tokens that a loss is taken on."""


def main() -> int:
    """Carry out the runs whose settings the files name, each forked."""
    import bitsandbytes  # noqa: F401
    import peft  # noqa: F401
    import torch  # noqa: F401

    from quantkit.training import fused_adapters, loop, run  # noqa: F401
    from quantkit_tools import train  # noqa: F401

    pages = library_pages()
    for file in map(Path, sys.argv[1:]):
        child = os.fork()
        if child == 0:
            os._exit(_trained(file, pages))
        os.waitpid(child, 0)
    return 0


def fresh() -> int:
    """Carry out the one run whose settings the file names in this process."""
    return _trained(Path(sys.argv[2]), [])


def _trained(file: Path, pages: list[tuple[int, int]]) -> int:
    from quantkit.config import RunConfig
    from quantkit.errors import QuantkitError
    from quantkit_tools import train

    with file.with_suffix(".log").open("w") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
        map_pages(pages)
        try:
            code = train.run(RunConfig(**json.loads(file.read_text())))
        except QuantkitError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def library_pages() -> list[tuple[int, int]]:
    """Return start and length of each stretch of mapped files that this process has in memory."""
    found: list[tuple[int, int]] = []
    with PAGEMAP.open("rb") as pagemap:
        for line in MAPS.read_text().splitlines():
            words = line.split(maxsplit=5)
            if len(words) < 6 or not words[5].startswith("/") or "r" not in words[1]:
                continue
            start, end = (int(address, 16) for address in words[0].split("-"))
            pagemap.seek(start // PAGE * 8)
            entries = struct.unpack(f"{(end - start) // PAGE}Q", pagemap.read((end - start) // PAGE * 8))
            for number, entry in enumerate(entries):
                address = start + number * PAGE
                if not entry >> 63:
                    continue
                if found and sum(found[-1]) == address:
                    found[-1] = (found[-1][0], found[-1][1] + PAGE)
                else:
                    found.append((address, PAGE))
    return found


def map_pages(pages: list[tuple[int, int]]) -> None:
    """Map stretches of memory that are in the page cache, by reading a byte of each page."""
    for start, length in pages:
        for address in range(start, start + length, PAGE):
            ctypes.c_char.from_address(address).value  # noqa: B018


def make_model(folder: Path, config: dict[str, Any], *, small: bool, seed: int) -> None:
    """Write a model with random weights in bfloat16 and the tests' tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny import tiny_tokenizer

    settings = COMMON | config | (SMALL if small else {})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def write_rows(file: Path, tokenizer: Any, *, length: int, rows: int, seed: int, mixed: bool = False) -> None:
    """Write rows of so many tokens, or of an eighth of that up to that: digits, each of which is a token.

    So nothing is shared and nothing is cut.
    """
    chance = random.Random(seed)

    def digits(count: int) -> str:
        return "".join(chance.choice("0123456789") for _ in range(count))

    def tokens(prompt: str, completion: str) -> int:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        return len(tokenizer(text)["input_ids"])

    template = tokens("1", "1") - 2
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(rows):
            whole = chance.randint(max(length // 8, template + 4), length) if mixed else length
            learnt = int(whole * LEARNT_SHARE)
            row = {"prompt": digits(max(whole - learnt - template, 1)), "completion": digits(learnt)}
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(fresh() if sys.argv[1] == "--fresh" else main())
