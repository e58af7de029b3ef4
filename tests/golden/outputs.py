"""What does an artifact say to a fixed prompt? The same question when golden artifacts are made and ever after."""

from pathlib import Path
from typing import Any

from quantkit.methods import installed_methods
from quantkit.modeling import load_source, load_tokenizer
from quantkit_registry.store import Registry
from quantkit_tools.opening import open_path

PROMPT = "Tom has 7 apples and buys 5 more. How many apples does Tom have?"
LOGITS = 16


def outputs(folder: Path, base: Path | None) -> dict[str, Any]:
    """Return the prompt's token ids, what it costs token by token, and the first logits after it; `base` is an adapter's."""
    import torch

    methods = installed_methods()
    opened = open_path(
        str(folder), methods, registry=Registry(folder.parent), device="cpu", base=None if base is None else str(base)
    )
    tokenizer = load_tokenizer(opened.tokenizer)
    turns = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
    model = load_source(opened.source, methods, device="cpu")
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].float()
    costs = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return {
        "method": opened.detection.method,
        "prompt_ids": ids[0].tolist(),
        "nll": [round(value, 4) for value in costs.tolist()],
        "logits": [round(value, 4) for value in logits[-1, :LOGITS].tolist()],
    }
