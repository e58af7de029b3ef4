"""What runs in a process of its own: one training by `quantkit train`, with the models and rows of a benchmark made before.

    python benchmarks/forecast_worker.py SETTINGS.json …

Several runs may share a process (the short form does that, to import once); their peaks then mean nothing.
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

from forecast_cases import COMMON, SMALL

LEARNT_SHARE = 0.5
"""Share of a row's tokens that a loss is taken on."""


def main() -> int:
    """Carry out the runs whose settings the files name."""
    from quantkit.config import RunConfig
    from quantkit_tools import train

    codes = [train.run(RunConfig(**json.loads(Path(file).read_text()))) for file in sys.argv[1:]]
    return max(codes)


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


def write_rows(file: Path, tokenizer: Any, *, length: int, rows: int, seed: int) -> None:
    """Write rows of exactly so many tokens: digits, each of which is a token, so that nothing is shared and nothing is cut."""
    chance = random.Random(seed)

    def digits(count: int) -> str:
        return "".join(chance.choice("0123456789") for _ in range(count))

    def tokens(prompt: str, completion: str) -> int:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        return len(tokenizer(text)["input_ids"])

    learnt = int(length * LEARNT_SHARE)
    asked = length - learnt - (tokens("1", "1") - 2)
    with file.open("w", encoding="utf-8") as stream:
        for _ in range(rows):
            stream.write(json.dumps({"prompt": digits(asked), "completion": digits(learnt)}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
