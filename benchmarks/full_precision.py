"""On which model can methods be compared whose weights never sat on anybody's grid? One trained here, in float32, in minutes.

Small public models often come as files that were quantized once: their weights stand on a grid that plain rounding may hit
and rotations destroy, so they cannot tell whether a rotation helps. This is a Llama of 2.4 M parameters, width 256, that
learns the project's generated arithmetic from nothing; it is kept under `.cache/` and made again when its source changes.

Models of this size have no outlier channels of their own. `plant_outliers` gives them what large ones are known for, in a
way that changes no output: gains of a few channels are multiplied, and what reads those channels is divided.
"""

import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STEPS = 300
ROWS_PER_STEP = 16
LEARNING_RATE = 2e-3
WIDTH, INNER, LAYERS, HEADS = 256, 512, 4, 8
OUTLIERS, FACTOR = 4, 32.0
"""Channels of each norm that are enlarged, and by how much; a power of two loses nothing."""


def model_folder(*, quick: bool) -> Path:
    """Return the folder of the model, trained if needed; `quick` is the tests' model of 0.6 M parameters."""
    sys.path.insert(0, str(ROOT))
    from tests import tiny

    if quick:
        return tiny.tiny_model_folder()
    shape = (STEPS, ROWS_PER_STEP, LEARNING_RATE, WIDTH, INNER, LAYERS, HEADS)
    text = [repr(shape), inspect.getsource(train), *(Path(str(item.__file__)).read_text() for item in (tiny, tiny.arithmetic))]
    key = hashlib.sha256("".join(text).encode()).hexdigest()[:12]
    target = ROOT / ".cache" / f"full-precision-{key}"
    if not target.exists():
        from quantkit.files import new_folder

        target.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(target) as folder:
            train(folder)
    return target


def train(folder: Path) -> None:
    """Train the model and save it with its tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    from quantkit.console import progress
    from quantkit.data.arithmetic import arithmetic_data
    from tests.tiny import tiny_config, tiny_tokenizer

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    model = LlamaForCausalLM(tiny_config(**shape, num_key_value_heads=HEADS // 2))
    texts = rendered(tokenizer, arithmetic_data(train=STEPS * ROWS_PER_STEP).train)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=STEPS)
    with progress("training a model in full precision", STEPS, unit="steps") as bar:
        for step in range(STEPS):
            rows = texts[step * ROWS_PER_STEP :][:ROWS_PER_STEP]
            batch = tokenizer(rows, return_tensors="pt", padding=True, padding_side="right")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            bar.advance(loss=loss.item())
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def rendered(tokenizer: Any, rows: list[dict[str, str]]) -> list[str]:
    """Return arithmetic rows as conversations."""
    turns = ([{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}] for row in rows)
    return [tokenizer.apply_chat_template(turn, tokenize=False) for turn in turns]


def plant_outliers(model: Any, *, channels: int = OUTLIERS, factor: float = FACTOR, seed: int = 0) -> Any:
    """Multiply a few gains of each block's norms and divide the columns that read them, in place; no output changes."""
    import torch

    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.model.layers:
            attention, mlp = block.self_attn, block.mlp
            for norm, readers in (
                (block.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (block.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                chosen = torch.randperm(len(norm.weight), generator=chance)[:channels]
                norm.weight[chosen] *= factor
                for reader in readers:
                    reader.weight[:, chosen] /= factor
    return model


def break_grid(model: Any, *, group_size: int = 32, seed: int = 0) -> Any:
    """Move every weight of the blocks, in place, by up to half a step of the 4-bit grid its group spans."""
    import torch

    from quantkit.layers import linear_layers

    chance = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings()
    with torch.no_grad():
        for layer in linear_layers(model).values():
            if layer is head:
                continue
            groups = layer.weight.float().reshape(-1, group_size)
            step = (groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15
            noise = (torch.rand(groups.shape, generator=chance) - 0.5) * step
            layer.weight.copy_((groups + noise).reshape(layer.weight.shape))
    return model
