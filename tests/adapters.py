"""An adapter as others make them: PEFT's files, and no record of ours."""

from pathlib import Path


def foreign_lora(model: Path, folder: Path, *, std: float) -> Path:
    """Save LoRA on all layers of a model that was never trained, but moved by noise of this deviation; return its folder."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=std)
    peft.save_pretrained(folder)
    return folder
