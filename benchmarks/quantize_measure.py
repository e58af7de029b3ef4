"""What is a saved folder worth, in a process that did not make it? `python quantize_measure.py JOB.json`.

The folder is loaded by plain transformers, in the data types it names. Folders in the GPTQ and AWQ formats are the one
exception: transformers wants a further library for them, quantkit reads them itself.
"""

import json
import sys
from pathlib import Path
from typing import Any

from quantize_make import CHECKED_ROWS


def main() -> None:
    """Measure row by row, against the 16-bit model's behaviour, which the first such process writes."""
    job = json.loads(Path(sys.argv[1]).read_text())
    folder, reference = Path(job["folder"]), Path(job["reference"])
    model, loader = load(folder)
    import torch
    from transformers import AutoTokenizer

    from quantkit.backends import keep_layout
    from quantkit.files import write_json
    from quantkit.gate import Behaviour, GateText, compare, observe

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    reference.mkdir(exist_ok=True)
    held_out = json.loads(Path(job["texts"]).read_text())["held_out"]
    texts = [GateText((tuple(row),), (), "held-out text") for row in held_out]
    rows = []
    for index, text in enumerate(texts):
        found, file = observe(model, tokenizer, text), reference / f"{index}.pt"
        if not file.is_file():
            torch.save({"nll": found.nll, "top1": found.top1, "log_probabilities": found.log_probabilities}, file)
        against = compare(Behaviour(**torch.load(file, mmap=True), broken=None), found, text)
        rows.append({"nll": found.nll, "tokens": len(text.rows[0]) - 1, "kl": against.mean_kl, "top1": against.top1_agreement})
    answer = {"rows": rows, "loader": loader, **sizes(folder, job["model"])}
    if packs_while_running(folder):
        kept = load(folder)[0]
        keep_layout(kept)
        answer["kept_layout_nll"] = [observe(kept, tokenizer, text).nll for text in texts[:CHECKED_ROWS]]
    write_json(Path(job["answer"]), answer)


def packs_while_running(folder: Path) -> bool:
    """Whether the library that runs these layers packs them anew on some processors, for other arithmetic than was recorded.

    bitsandbytes does so with 4-bit layers where the processor multiplies bfloat16; quantkit keeps them as stored.
    """
    return bool(stated_quantization(folder).get("load_in_4bit"))


def stated_quantization(folder: Path) -> dict[str, Any]:
    """Return a folder's `quantization_config`; empty for dense weights."""
    return dict(json.loads((folder / "config.json").read_text()).get("quantization_config", {}))


def load(folder: Path) -> tuple[Any, str]:
    """Return the model of a folder, and which library read it."""
    from transformers import AutoModelForCausalLM

    if stated_quantization(folder).get("quant_method") in ("gptq", "awq"):
        from quantkit.backends.packed_checkpoints import load_packed_checkpoint

        return load_packed_checkpoint(folder, dtype="auto", device="cpu", trust_remote_code=False)[0].eval(), "quantkit"
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval(), "transformers"


def sizes(folder: Path, model: str) -> dict[str, Any]:
    """Return bytes of the weight files, and bits per weight: all that is stored for a linear layer but its bias."""
    from quantkit.headers.tensorfiles import read_tensor_index
    from quantkit.layers import features, linear_layers
    from quantkit.skeleton import read_skeleton

    index = read_tensor_index(folder)
    layers = {name: features(layer) for name, layer in linear_layers(read_skeleton(model).model).items()}
    weights = sum(inputs * outputs for inputs, outputs in layers.values())
    stored = 0
    for name, tensor in index.tensors.items():
        parts = name.split(".")
        inside = any(".".join(parts[:depth]) in layers for depth in range(1, len(parts)))
        stored += tensor.size_bytes if inside and parts[-1] != "bias" else 0
    return {"size_bytes": index.size_bytes, "bits_per_weight": stored * 8 / weights}


if __name__ == "__main__":
    main()
