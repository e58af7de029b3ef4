"""What does AutoRound do? Rounding offsets and clipping are learnt together by signed gradient descent (arXiv:2309.05516).

For a group with scale s, ŵ = s·clamp(round(w/s + v)) with v in [−½, ½] a weight, and s = β·max|w|/2^(b−1) with β a group,
0 to 1; both go downhill on the block's output error by the sign of their gradient, and the step shrinks to zero. Layer and
optimizer are the auto-round library's. Its own loop over the model is not used: it holds the whole model, cannot go on after it
was killed, and writes its own format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantizationSpec, UsageError, hookimpl, shared_hooks
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.integer_plans import BLOCKS, IntegerOptions, integer_method, integer_plan

if TYPE_CHECKING:
    import torch

    from quantkit.exporting.answers import Row
    from quantkit.numerics.capture import Block
    from quantkit.numerics.grids import QuantizedWeight


@dataclass(frozen=True)
class AutoRoundOptions(IntegerOptions):
    """Settings of AutoRound."""

    iterations: int = 200
    """Steps for each block."""
    batch_size: int = 8
    """Calibration rows in one step."""
    rounding_learning_rate: float | None = None
    """First step of rounding offsets and clipping; none: 1/iterations, as published."""
    equal_tokens: bool = True
    """Let every calibration token count alike, however large it is; false: as published, where huge first tokens decide."""
    seed: int = 0
    """Decides the order of the rows."""

    at_least_one: ClassVar = ("iterations", "batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounding_learning_rate is not None and not 0 < self.rounding_learning_rate <= 1:
            raise UsageError(f"rounding_learning_rate is {self.rounding_learning_rate}; it must be above 0 and at most 1")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare AutoRound."""
    return integer_method(
        "AutoRound",
        "Integers in groups; rounding and clipping learnt by signed gradient descent (auto-round library)",
        AutoRoundOptions,
        paper="arXiv:2309.05516",
        takes=BLOCKS,
        limits="Wants the auto-round library; stored as compressed-tensors, not in that library's own format.",
        requirements=("auto-round>=0.16.1,<0.17",),
        calibration="required",
    )


@hookimpl
def build_quantization_plan(options: AutoRoundOptions, context: PlanContext) -> QuantizationPlan:
    """Plan integer weights in groups; the head stays dense."""
    return integer_plan("AutoRound", options, context)


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Learn block by block."""
    from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid

    grid = uniform_grid(plan.spec, model.dtype)

    def solve(block: "Block") -> "dict[str, QuantizedWeight]":
        return learn_rounding(block, plan.spec, model.dtype, plan.options)

    batch_size = plan.options["batch_size"]
    layers = solve_blocks(plan, model, calibration, work, solve, grid=grid, reference=True, rows_per_batch=batch_size)
    return store_in_format(plan, model, layers)


@hookimpl
def declare_exports() -> "dict[str, Row]":
    """Say what becomes of checkpoints in the library's own format, which it also writes others instead of."""
    from quantkit.exporting.answers import Row, as_it_is, route

    again = "Quantize the 16-bit model once more with auto-round, which writes this format itself (`--format {}`)."
    others = {"gguf": "gguf:q4_k_m", "awq": "auto_awq", "gptq": "auto_gptq", "compressed-tensors": "llm_compressor"}
    load = "Load it with transformers and auto-round, and save the dequantized weights."
    served = "vLLM reads it; its reader is proposed for removal."
    answers = {
        "transformers": as_it_is("transformers reads it with auto-round.", "transformers 5.23", "auto-round"),
        "dense": route("exact", load, "auto-round 0.16"),
        "vllm": as_it_is(served, "https://github.com/vllm-project/vllm/issues/30136"),
        **{target: route("lossy", again.format(word), "auto-round 0.16") for target, word in others.items()},
    }
    return {"auto-round": Row(title="AutoRound's own format", answers=answers)}


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense


def learn_rounding(
    block: "Block", spec: QuantizationSpec, scale_dtype: "torch.dtype", options: Mapping[str, Any]
) -> "dict[str, QuantizedWeight]":
    """Learn the rounding of a block's layers for its output; what was learnt is kept if it lowers the error, else dropped.

    Raises:
        UsageError: the group size does not divide a layer's columns, or a weight is not finite; names the layer.
    """
    import torch
    from auto_round.algorithms.quantization.sign_round.sign_sgd import SignSGD

    wrappers = {name: _wrapped(name, linear, spec, scale_dtype, block.device) for name, linear in block.linears.items()}
    start = {name: {key: value.detach().clone() for key, value in item.params.items()} for name, item in wrappers.items()}
    parameters = [value for item in wrappers.values() for value in item.params.values()]
    rate, steps = options["rounding_learning_rate"] or 1 / options["iterations"], options["iterations"]
    optimizer = SignSGD(parameters, lr=rate, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=steps)
    generator = torch.Generator().manual_seed(options["seed"] + block.index)
    _exchange(block, wrappers)
    try:
        before = _error(block, scale_dtype, options["equal_tokens"])
        for _ in range(steps):
            batch = int(torch.randint(len(block.hidden), (), generator=generator))
            with torch.enable_grad():
                slopes = torch.autograd.grad(_loss(block, batch, scale_dtype, options["equal_tokens"]), parameters)
            for parameter, slope in zip(parameters, slopes, strict=True):
                parameter.grad = slope
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        better = _error(block, scale_dtype, options["equal_tokens"]) < before
    finally:
        _exchange(block, block.linears)
    return {
        name: _rounded(item, dict(item.params) if better else start[name], spec, scale_dtype) for name, item in wrappers.items()
    }


def _wrapped(name: str, linear: Any, spec: QuantizationSpec, scale_dtype: "torch.dtype", device: str) -> Any:
    """Return the library's layer around a copy of ours: it learns `params`, and writes its result into the copy."""
    import copy

    from auto_round.wrapper import WrapperLinear

    from quantkit.numerics.grids import require_divisor

    if spec.group_size not in (None, -1):
        require_divisor(linear.in_features, int(spec.group_size or 0), name)
    if not bool(linear.weight.isfinite().all()):
        raise UsageError(f"{name} holds weights that are not finite; nothing can be quantized from them")
    layer: Any = copy.deepcopy(linear).requires_grad_(False)
    layer.bits, layer.group_size, layer.sym, layer.data_type = spec.weights_bits, spec.group_size, spec.symmetric, "int"
    layer.act_bits, layer.scale_dtype = 16, scale_dtype
    return WrapperLinear(layer, enable_minmax_tuning=True, enable_torch_compile=False, device=device)


def _rounded(wrapper: Any, params: dict[str, Any], spec: QuantizationSpec, scale_dtype: "torch.dtype") -> "QuantizedWeight":
    """Return codes and scales of what the library's layer computes with these parameters."""
    import torch

    from quantkit.numerics.grids import QuantizedWeight

    with torch.no_grad():
        layer = wrapper.unwrapper(params)
    middle = 1 << (spec.weights_bits - 1)
    scale = layer.scale.to(layer.weight.device, scale_dtype).reshape(layer.out_features, -1)
    steps = layer.weight.data.float().reshape(*scale.shape, -1) / scale.float().unsqueeze(-1)
    zero_point = None
    if not spec.symmetric:
        zero_point = layer.zp.to(scale.device).reshape(scale.shape).float() - middle
        steps = steps + zero_point.unsqueeze(-1)
    codes = steps.round().clamp(-middle, middle - 1).to(torch.int8).reshape(layer.weight.shape)
    offsets = None if zero_point is None else zero_point.to(torch.int8)
    return QuantizedWeight(codes, scale, offsets, spec.weights_bits, spec.group_size or -1)


def _exchange(block: "Block", layers: Mapping[str, Any]) -> None:
    for name, layer in layers.items():
        block.module.set_submodule(name.removeprefix(f"{block.name}."), layer)


def _error(block: "Block", dtype: "torch.dtype", level: bool) -> float:
    import torch

    with torch.no_grad():
        return sum(float(_loss(block, batch, dtype, level)) * len(item) for batch, item in enumerate(block.hidden))


def _loss(block: "Block", batch: int, dtype: "torch.dtype", level: bool) -> "torch.Tensor":
    """Return the mean squared error of a batch's tokens, each divided by its target's mean square if `level`."""
    import torch

    if block.targets is None:
        raise ValueError("the block's targets were not recorded; solve_blocks needs reference=True")
    target = block.targets[batch].to(block.device).float()
    with torch.autocast(torch.device(block.device).type, dtype, enabled=dtype != torch.float32):  # offsets are float32
        output = block.run(batch, block.hidden[batch])
    error = (output.float() - target).square().mean(-1)
    if level:
        error = error / target.square().mean(-1).clamp(min=1e-12)
    mask = block.masks[batch]
    loss: torch.Tensor = error.mean() if mask is None else error[mask.to(block.device)].mean()
    return loss
