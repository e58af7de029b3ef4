"""In which ways are adapters spoilt, and what must a merge say to each?"""

import pytest
import torch

from tests.merging.folders import streamed

A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"


def refused(case, kind, text, **more):
    base, adapter, plan = case
    out = base.parent / "out"
    with pytest.raises(kind, match=text):
        streamed(base, adapter, out, plan, **more)
    assert not out.exists()
    assert not list(base.parent.glob(".writing-*"))


def record_of(plan, fingerprint="sha256:right"):
    return {"base": {"fingerprint": fingerprint}, "recipe": plan.to_dict(), "adapter": plan.adapter.to_dict()}


def renamed(old, new):
    return lambda tensors: {name.replace(old, new): tensor for name, tensor in tensors.items()}


def without(*names):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if name not in names}


def zeroed(tensors):
    return {name: torch.zeros_like(tensor) if "lora_B" in name else tensor for name, tensor in tensors.items()}


SPOILT = {
    "a tensor missing": (without(B), r"1 tensor of the adapter missing, e.g. .*q_proj.lora_B.weight"),
    "a layer missing": (without(A, B), r"no tensors for 1 layer to be adapted, e.g. model.layers.0.self_attn.q_proj"),
    "an unknown tensor": (
        lambda t: t | {"base_model.model.model.norm.weight": torch.ones(128)},
        r"1 tensor of no module of it, e.g. model.norm.weight",
    ),
    "a renamed layer": (
        renamed("0.self_attn.q_proj", "0.self_attn.q_porj"),
        r"tensors for 1 layer not to be adapted, e.g. model.layers.0.self_attn.q_porj. Did you mean 'model.layers",
    ),
    "renamed throughout": (renamed("base_model.model.", ""), r"28 tensors not those of a LoRa adapter as PEFT stores it"),
    "another kind": (renamed("lora_", "loha_"), r"tensors of no module of it|no tensors for"),
    "another shape": (
        lambda t: t | {A: t[A][:, :64].contiguous()},
        r"q_proj \(A\) has the shape \[4, 64\]; a layer of 128 x 128 and rank 4 takes \[4, 128\]",
    ),
    "never trained": (zeroed, "all B matrices are zero; the adapter was never trained"),
    "nan": (lambda t: t | {A: torch.full_like(t[A], float("nan"))}, r"q_proj \(A\) holds values that are not finite"),
    "infinity": (lambda t: t | {B: torch.full_like(t[B], float("inf"))}, r"q_proj \(B\) holds values that are not finite"),
    "integers": (lambda t: t | {A: t[A].int()}, r"q_proj.lora_A.weight is stored as I32; adapters are floating point"),
    "empty": (lambda _: {}, "the adapter holds no tensors"),
}
