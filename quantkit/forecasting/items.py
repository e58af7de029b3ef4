"""Which bytes live at which moment of a run? Each function counts one kind of thing: name → bytes.

Apart from `quantkit.forecasting.forecast`, which says when they live together.
"""

from collections.abc import Mapping

from quantkit.forecasting.activations import Activations
from quantkit.forecasting.adapters import AdapterSize
from quantkit.forecasting.constants import Constants
from quantkit.forecasting.folding import merging
from quantkit.forecasting.parallel import HEAD_GRADIENT
from quantkit.forecasting.settings import RunSettings
from quantkit.forecasting.shape import ModelShape
from quantkit.forecasting.storage import UNPACKED, held_bytes, stored_bytes
from quantkit.spec import DENSE_BITS

TRIED = 98
"""Positions whose logits live in float64 when layouts are tried: rows alone, the same padded, and these in float32."""


def held_weights(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return what the base takes while it is trained on: quantized or dense layers, and all that no method quantizes."""
    if settings.adapter.kind == "NoPeft":
        return {"weights, all of them trained": shape.parameters * settings.trained_bytes}
    return frozen_weights(shape, settings, settings.held_dtype(shape.dtype))


def frozen_weights(shape: ModelShape, settings: RunSettings, held: str) -> dict[str, int]:
    """Return what a frozen base takes whose dense weights are held in a data type."""
    spec = settings.plan.spec
    layers = sum(held_bytes(spec, layer, held=held) for layer in shape.linears)
    unpacked = spec.is_quantized and spec.format in UNPACKED
    name = f"{spec.weights_dtype} weights" + (f", unpacked to {held}" if unpacked else "") if spec.is_quantized else "weights"
    return {name: layers, "embeddings, head, norms": shape.dense_parameters * DENSE_BITS[settings.dense or held] // 8}


def beside_gpus(shape: ModelShape, settings: RunSettings, loaded: Mapping[str, int], offloaded: int, paged: int) -> int:
    """Return what lies on the CPU beside GPUs: with FSDP2 each process loads the base there, and casts it, where it is trained;
    where adapters are folded in in memory, the first process does it there."""
    each = held_weights(shape, settings) if settings.adapter.kind == "NoPeft" else loaded
    whole = settings.processes * sum(each.values()) if settings.strategy == "fsdp" else 0
    folding = sum(merging(shape).values()) if settings.strategy == "fsdp" and settings.folds_in_memory else 0
    return max(whole, folding, offloaded + paged)


def adapter_weights(settings: RunSettings, size: AdapterSize) -> dict[str, int]:
    """Return what adapters take, those parts included that are not trained."""
    if settings.adapter.kind == "NoPeft":
        return {}
    return {"adapters": size.trained * settings.trained_bytes + size.frozen * 4}


def workspace(settings: RunSettings, constants: Constants) -> dict[str, int]:
    """Return what matrix products work in on a GPU."""
    return {} if settings.device == "cpu" else {"matrix products' workspace": constants.workspace_bytes}


def earlier_gradients(settings: RunSettings, gradients: int) -> dict[str, int]:
    """Return the gradients that live during a forward pass: those of the passes before it in the same step."""
    return {"gradients": gradients} if settings.accumulation > 1 else {}


def held_activations(kept: Activations, settings: RunSettings, shape: ModelShape) -> dict[str, int]:
    """Return what the backward pass needs of the forward pass."""
    return {"activations": kept.kept(settings, shape.blocks) + kept.last + kept.weight_copies}


def backward_items(kept: Activations, settings: RunSettings, shape: ModelShape, gradients: int) -> dict[str, int]:
    """Return the largest of a backward pass: its beginning, where other blocks are computed again, or its end."""
    earlier = earlier_gradients(settings, gradients)

    def work(count: int) -> dict[str, int]:
        return {
            "activations computed again": kept.again(settings, count - 1),
            "gradients of activations": kept.backward,
            "dequantized weight": kept.dequantized,
        }

    formed = {HEAD_GRADIENT: 2 * kept.head_gradient} if kept.head_gradient else {}  # its sum, and that scaled
    found = [held_activations(kept, settings, shape) | work(shape.blocks) | earlier | formed]
    for count in kept.turns(shape.blocks):
        made = {"gradients": gradients if count == 1 else gradients * (shape.blocks - count) // shape.blocks} | earlier
        found.append({"activations": kept.kept(settings, count)} | work(count) | made)
    return max(found, key=lambda items: sum(items.values()))


def step_work(settings: RunSettings, size: AdapterSize) -> int:
    """Return what AdamW makes on the way: on a GPU it works on all tensors at once, unless it is fused or in 8 bits.

    On a CPU it takes one tensor after the other, twice the root of its second moment.
    """
    if settings.optim != "adamw_torch":
        return 0
    return size.trained * settings.trained_bytes if settings.device != "cpu" else 2 * size.largest * settings.trained_bytes


def loaded_weights(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return the weights as they come into memory: in the plan's compute data type, quantized on the way where they are."""
    loaded = settings.plan.compute_dtype
    if settings.adapter.kind == "NoPeft":
        return {"weights": shape.parameters * DENSE_BITS[loaded] // 8}
    return frozen_weights(shape, settings, loaded)


def reading(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return what reading a tensor takes beside its place: on a GPU nothing, unless it is quantized there."""
    stored = DENSE_BITS.get(shape.dtype, 32) // 8
    if settings.device == "cpu":
        return {"the tensor being read": max(shape.largest, shape.embeddings) * stored}
    quantized = settings.plan.spec.is_quantized and settings.plan.spec.format not in UNPACKED
    return {"the layer being quantized": max(layer.weights for layer in shape.linears) * stored} if quantized else {}


def casting(shape: ModelShape, settings: RunSettings, *, back: bool = False) -> dict[str, int]:
    """Return the copy of a tensor that is made where training holds weights in another data type than loading.

    Of the largest, or, when they get their data type back, of the last: the others are as large again as they were by then.
    """
    whole = settings.adapter.kind == "NoPeft"
    held = settings.trained_dtype if whole else settings.held_dtype(shape.dtype)
    if held == settings.plan.compute_dtype:
        return {}
    last = shape.linears[-1] if shape.head is None or shape.tied else shape.head
    return {"the tensor being cast": (last.weights if back else max(shape.largest, shape.embeddings)) * DENSE_BITS[held] // 8}


def norming(settings: RunSettings, size: AdapterSize) -> dict[str, int]:
    """Return what PEFT makes of the largest weight that DoRA takes the norm of, when it attaches it.

    Its update, that scaled, their sum, and the weight itself where it is quantized, all in float32.
    """
    if settings.adapter.kind != "DoRa":
        return {}
    return {"a weight's norm": (3 + settings.plan.spec.is_quantized) * 4 * max(layer.weights for layer in size.layers)}


def trial(shape: ModelShape) -> dict[str, int]:
    """Return what trying the layouts of rows takes before the first step (`quantkit.training.padding_free`)."""
    return {"logits of a trial": TRIED * 8 * shape.vocabulary}


def quantizing(shape: ModelShape, settings: RunSettings) -> dict[str, int]:
    """Return what a base takes that a method quantizes first: itself, and one block in float32 with its statistics."""
    block = sum(8 * layer.weights + 4 * layer.inputs**2 for layer in shape.block_of(0))
    dense = {"the base, dense": shape.parameters * DENSE_BITS[settings.plan.compute_dtype] // 8}
    inputs = 2 * 4 * settings.calibration_tokens * shape.width
    return dense | {"a block with its statistics": block} | ({"inputs of a block": inputs} if inputs else {})


def written_bytes(shape: ModelShape, settings: RunSettings, size: AdapterSize) -> int:
    """Return the bytes of the artifact, and of the quantized base where a method makes one first."""
    base = artifact_bytes(shape, settings) if settings.quantizes_base else 0
    if settings.merges or settings.adapter.kind == "NoPeft":
        return base + DENSE_BITS[settings.save_dtype] // 8 * shape.parameters
    return base + 4 * (size.trained + size.frozen)


def artifact_bytes(shape: ModelShape, settings: RunSettings) -> int:
    """Return the bytes of the quantized model of a method as its checkpoint holds it, embeddings and head in 16 bits."""
    spec = settings.plan.spec
    wide = DENSE_BITS[settings.save_dtype] // 8
    head = DENSE_BITS.get(spec.lm_head_dtype, 16) // 8
    dense = shape.dense_parameters * wide + (0 if shape.head is None or shape.tied else shape.head.weights * (head - wide))
    return sum(stored_bytes(spec, layer, dense=settings.save_dtype) for layer in shape.linears) + dense
