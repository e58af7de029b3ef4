"""Where do adapters start, so that training on a quantized base begins at the model people chose, not below it?

The usual start adds nothing: A is drawn, B is zero, and what quantization did to the base is the first thing to be learnt. Two
others cost one singular value decomposition a layer:

* `loftq` (LoftQ, arXiv:2310.08659, its first step): B·A is the best rank-r approximation of W − Q, what the base lost. The
  base is left as it is, so its recipe, a kept adapter and every merge mean what they meant before. The paper's further steps
  quantize W − BA anew: another base, which would have to be stored; PEFT's `replace_lora_weights_loftq` leaves them out too.
  What they would gain, on 21 layers of SmolLM2-135M in NF4: ‖W − Q − BA‖/‖W‖ is 0.095 without adapters, at rank 16 0.086
  after the first step, 0.083 after two, 0.079 after five (at rank 64 0.070, 0.065, 0.062).
  The start is nearer to the original, and the loss goes where the original's is, down or up: on 2,742 tokens of OpenMath from
  2.372 to 2.353 at rank 16, 2.309 at rank 64 (16 bit 2.192; KL 0.265, 0.237, 0.183); on generated arithmetic, where NF4
  happened to lie below the original, from 2.272 to 2.308 at rank 16 (16 bit 2.308; KL 0.46, 0.41).
  PEFT's function is not used: it moves weights to a GPU that may not be there, knows NF4 only, and its product is multiplied
  by alpha/r once more in the forward pass.
* `pissa` (PiSSA, arXiv:2404.02948): B·A holds the largest singular values of W, and the base keeps the rest. PEFT does this, on
  dense weights only. The base changes, so the adapter means nothing on any other: it is folded in at the end of the run.
"""

from typing import Any

from quantkit.errors import UsageError
from quantkit.plan import AdapterPlan

SEED = 0
OVERSAMPLING = 16
"""Columns beyond twice the rank in the randomized decomposition (Halko et al. 2011, arXiv:0909.4061), with `ITERATIONS`."""
ITERATIONS = 4


def check_start(adapter: AdapterPlan, *, quantized: bool, keeps_base: bool, original: bool = True) -> None:
    """Refuse starts that cannot do what they promise in this run.

    `quantized`: whether the base's weights are; `keeps_base`: whether adapters may later meet a base that was loaded again
    (they are kept, or folded into the original); `original`: whether the weights before quantization are at hand.

    Raises:
        UsageError: says why, and which start fits.
    """
    start = adapter.init_lora_weights
    if start == "loftq" and not quantized:
        raise UsageError(
            "init_lora_weights is 'loftq', but the base is not quantized: there is no loss to start from; use 'pissa'"
        )
    if start == "loftq" and not original:
        raise UsageError(
            "init_lora_weights is 'loftq', but the base is stored quantized, and the weights it was made from are not at hand;"
            " name the 16-bit model and the method, or use 'default'"
        )
    if start == "pissa" and quantized:
        raise UsageError("init_lora_weights is 'pissa', but the base is quantized and PiSSA changes it; use 'loftq'")
    if start == "pissa" and keeps_base:
        raise UsageError(
            "init_lora_weights is 'pissa', which changes the base's weights: an adapter that is kept, or folded into the"
            " original base, would compute something else there. Merge into the base of the run (merge 'dequantized'), or use"
            " 'default'"
        )


def start_from_residual(model: Any, path: str, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """Set the LoRA matrices of a fresh `PeftModel` to the rank-r part of what its base lost; return the model.

    `path` is the folder or hub id of the weights before quantization; they are read one layer at a time.

    Raises:
        UsageError: a layer's original weight is not there, or has another shape.
    """
    import torch
    from peft.tuners.lora import LoraLayer

    from quantkit.layers import bare_model
    from quantkit.merging.model_facts import read_base_folder
    from quantkit.merging.prepared import local_folder
    from quantkit.merging.tensorfiles import read_tensor

    base = read_base_folder(local_folder(path, revision), trust_remote_code=trust_remote_code)
    adapter = model.active_adapters[0]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(SEED)
        for name, layer in bare_model(model).named_modules():
            if not isinstance(layer, LoraLayer):
                continue
            stored = base.stored(f"{name}.weight")
            if stored is None:
                raise UsageError(
                    f"{path}: has no {name}.weight; init_lora_weights 'loftq' needs the weights before quantization"
                )
            weight = read_tensor(stored).float()
            held = held_weight(layer.get_base_layer())
            weight = (weight.T if name in base.turned else weight).to(held.device)
            if weight.shape != held.shape:
                raise UsageError(f"{path}: {name}.weight is {list(weight.shape)}, the base's {list(held.shape)}; another model")
            down, up = low_rank(weight - held, layer.r[adapter], layer.scaling[adapter])
            layer.lora_A[adapter].weight.data.copy_(down)
            layer.lora_B[adapter].weight.data.copy_(up)
    return model


def held_weight(layer: Any) -> Any:
    """Return the weight a base layer computes with, float32 `[out, in]`; the layer is left alone."""
    import copy

    from quantkit.backends import dense_layer, layer_facts

    dense = layer_facts(layer).format == "dense"
    return dense_layer(copy.deepcopy(layer) if dense else layer).weight.data.float()


def low_rank(residual: Any, rank: int, scaling: float) -> tuple[Any, Any]:
    """Return A `[rank, in]` and B `[out, rank]` of the best scaling·B·A ≈ residual `[out, in]`, the two of one size."""
    import torch

    wanted = min(2 * rank + OVERSAMPLING, *residual.shape)
    left, values, right = torch.svd_lowrank(residual, q=wanted, niter=ITERATIONS)
    rank = min(rank, wanted)
    root = (values[:rank] / scaling).sqrt()
    return root.unsqueeze(1) * right[:, :rank].T, left[:, :rank] * root
