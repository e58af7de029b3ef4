"""A Llama of 0.6 M parameters that has learnt a little arithmetic, for tests that take seconds.

It is trained from scratch in full precision on the project's own rows (about 20 s on one core, once per checkout: the
result is kept under `.cache/`), so quantizing it does measurable harm and training it further does measurable good.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from quantkit.data import arithmetic

CACHE = Path(__file__).parent.parent / ".cache"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
STEPS = 150


def tiny_model_folder() -> Path:
    """Return the folder of the trained tiny model (safetensors, tokenizer with ChatML template); build it if needed."""
    sources = (Path(__file__), Path(arithmetic.__file__))
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    target = CACHE / f"tiny-{key}" / "Tiny-Llama"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            _build(temporary)
            try:
                temporary.replace(target)
            except OSError:  # another process was first
                if not target.exists():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def tiny_tokenizer() -> Any:
    """Return a byte-level BPE tokenizer of 512 tokens with single-digit numbers, ChatML and pad = eos."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    rows = arithmetic.arithmetic_data(train=800).train
    tokenizer.train_from_iterator([f"{row['question']} {row['answer']}" for row in rows] + ["system user assistant"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_config(**changes: Any) -> Any:
    """Return the tiny model's `LlamaConfig`; keyword arguments replace fields."""
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    return LlamaConfig(**(settings | changes))


def _build(folder: Path) -> None:
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    model = LlamaForCausalLM(tiny_config())
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}], tokenize=False
        )
        for row in arithmetic.arithmetic_data(train=3200).train
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for step in range(STEPS):
        batch = tokenizer(texts[step * 16 % 3200 :][:16], return_tensors="pt", padding=True, padding_side="right")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if os.environ.get("TINY_VERBOSE"):
        print(f"tiny model: loss {loss.item():.3f} after {STEPS} steps")
