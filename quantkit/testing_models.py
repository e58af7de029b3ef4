"""On which model are a plugin's promises tried? On a tiny random one, made here, trained and asked in a few steps.

Its rows are fixed token ids, so that a plugin needs no fixtures and no downloads.
"""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.calibration import Calibration
from quantkit.methods import Methods
from quantkit.plan import QuantizationPlan

if TYPE_CHECKING:
    from torch import Tensor

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "plus", "minus", "is", "and", ".", "?"]
ROWS, TOKENS = 3, 24
RELOAD = """
import sys
sys.modules["quantkit"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folder, rows, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
save_file({"logits": model(input_ids=load_file(rows)["rows"]).logits.detach().float().contiguous()}, target)
"""


def load(methods: Methods, plan: QuantizationPlan, base: Path) -> Any:
    """Return the base as the plan wants it, quantized with random tokens where the method asks for calibration data."""
    from quantkit.modeling import load_base

    calibration = None
    if methods.info(plan.method).calibration != "none":
        calibration = Calibration(tuple(tuple(row.tolist()) for row in sample_rows()), "random rows of the contract")
    return load_base(str(base), plan=plan, methods=methods, device="cpu", calibration=calibration)


def load_with_adapter(methods: Methods, plan: QuantizationPlan, base: Path) -> Any:
    """Return a `PeftModel` ready to train."""
    from quantkit.adapters import attach_adapter

    return attach_adapter(methods.prepare_model(plan, load(methods, plan, base)), plan.adapter, seed=0)


def train(model: Any, *, steps: int) -> list[str]:
    """Take a few large steps on sample rows; return what is wrong with the first step's gradients, in sentences."""
    import torch

    from quantkit.training.guards import gradient_faults

    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    faults: list[str] = []
    for step in range(steps):
        model(input_ids=sample_rows(), labels=sample_rows()).loss.backward()
        faults = gradient_faults(model) if step == 0 else faults
        optimizer.step()
        optimizer.zero_grad()
    return faults


def logits(model: Any) -> "Tensor":
    """Return the model's float32 logits `[rows, tokens, vocabulary]` on sample rows, as inference computes them."""
    import torch

    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=sample_rows()).logits.float()
    return found


def reload_logits(folder: Path, scratch: Path) -> "Tensor":
    """Return a folder's logits by plain transformers in a process without quantkit; of GPTQ and AWQ folders by our reader."""
    from safetensors.torch import load_file, save_file

    from quantkit.backends.packed_checkpoints import is_packed_checkpoint, load_packed_checkpoint

    if is_packed_checkpoint(folder):
        return logits(load_packed_checkpoint(folder, dtype="auto", device="cpu", trust_remote_code=False)[0])
    scratch.mkdir(exist_ok=True)
    save_file({"rows": sample_rows()}, scratch / "rows.safetensors")
    names = [str(folder), str(scratch / "rows.safetensors"), str(scratch / "logits.safetensors")]
    done = subprocess.run([sys.executable, "-c", RELOAD, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(names[-1])["logits"]


def sample_rows() -> "Tensor":
    """Return token ids `[rows, tokens]`, always the same."""
    import torch

    return torch.randint(3, len(WORDS) + 3, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def tiny_base_config() -> dict[str, Any]:
    """Return the settings of the tiny base, as `LlamaConfig` takes them."""
    return {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.08,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def build_tiny_base(folder: Path) -> Path:
    """Write a random Llama of 0.4 M parameters in bfloat16 with a word tokenizer, and return its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**tiny_base_config())).to(torch.bfloat16).save_pretrained(folder)
    return folder
