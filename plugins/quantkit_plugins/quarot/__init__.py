"""What is QuaRot here? Rotations that take the outliers out of weights and activations, then rounding (arXiv:2404.00456).

Rotations of the residual stream (R1) and of the values (R2) are multiplied into the weights; before rounding, the model
computes what it computed. The result is an ordinary compressed-tensors checkpoint of the same architecture. The paper's
online rotations (R3 of queries and keys, R4 before the down projection) are not offered: no checkpoint format that plain
transformers loads has a place for them. Nor is a quantized key/value cache, for the same reason.

Rotation pays where channels are outliers, and most when activations are rounded too. Where there are none it can lose: on
SmolLM2's public file, rounding weights alone at 4 bits, KL grows 1.9-fold (1.7-fold with the 4-bit grid its weights sat on
broken by noise). `benchmarks/rotation.py` measures both sides.

Norm weights are folded into the layers behind them, so adapters on a rotated base see inputs without them: on SmolLM2 (medians
0.30 and 0.23) three to four times larger ones, and one learning rate is a larger step than on other bases.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from quantkit import (
    MethodInfo,
    PlanContext,
    QuantizationPlan,
    QuantizationSpec,
    QuantMethod,
    Stage,
    UsageError,
    hookimpl,
)
from quantkit.calibration import Calibration, QuantizationWork


@dataclass(frozen=True)
class QuarotOptions:
    """Settings of QuaRot."""

    weights_bits: Literal[2, 3, 4, 8] = 4
    """Bits of one weight."""
    group_size: int = 128
    """Input columns that share one scale; -1: one scale per output row."""
    symmetric: bool = True
    """Whether the grid has no zero point."""
    activations_bits: Literal[8] | None = None
    """Bits to which each token's activations are rounded at run time; none: weights only. 4 is not loadable anywhere."""
    rounding: Literal["gptq", "rtn"] = "gptq"
    """How rotated weights are rounded: with error feedback on calibration data, or each to the nearest level."""
    damp_percent: float = 0.01
    """Share of the Hessian's mean diagonal that is added to it; only with rounding gptq."""
    scale_search: Literal["mse", "minmax"] = "mse"
    """How a group's scale is chosen: the range of least squared error, or the whole range."""
    equal_tokens: bool = True
    """Let every calibration token count alike, however large it is; only with rounding gptq."""
    r1: bool = True
    """Rotate the residual stream; unties the output head from the embeddings."""
    r2: bool = True
    """Rotate the values of each head."""
    seed: int = 0
    """Seed of the rotations' random signs."""

    def __post_init__(self) -> None:
        if self.group_size != -1 and self.group_size < 1:
            raise UsageError(f"group_size is {self.group_size}; it must be a number of columns, or -1 for the whole row")
        if not 0.0 <= self.damp_percent < 1.0:
            raise UsageError(f"damp_percent is {self.damp_percent}; it must be between 0 and 1")
        if self.rounding == "rtn" and self.damp_percent != QuarotOptions.damp_percent:
            raise UsageError("damp_percent is set, but rounding rtn uses no Hessian; choose rounding gptq or leave it out")
        if self.rounding == "rtn" and not self.equal_tokens:
            raise UsageError("equal_tokens is off, but rounding rtn counts no tokens; choose rounding gptq or leave it out")
        if self.activations_bits is not None and not self.symmetric:
            raise UsageError(
                "activations_bits is 8 and symmetric false; transformers loads weights with zero points only by unpacking them,"
                " and then leaves activations unrounded. Use symmetric weights"
            )
        if not (self.r1 or self.r2):
            raise UsageError("r1 and r2 are both off; without a rotation this is plain rounding: use GPTQ or RTN")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare QuaRot."""
    return MethodInfo(
        name=QuantMethod.QUAROT,
        summary="Rotations folded into the weights, then GPTQ or rounding to nearest",
        options=QuarotOptions,
        stages=frozenset({Stage.BASE, Stage.TRAINED}),
        requirements=("compressed-tensors>=0.19",),
        adapters=("LoRa", "DoRa", "VeRa"),
        calibration="optional",
    )


@hookimpl
def build_quantization_plan(options: QuarotOptions, context: PlanContext) -> QuantizationPlan:
    """Plan rotated integer weights; the head stays dense. What tells variants apart stands in tags."""
    from quantkit.backends.vllm_rules import check_servable, check_servable_activations

    tags = [] if options.symmetric else ["asym"]
    tags += [name for name, on in (("r1", options.r1), ("r2", options.r2)) if on and not (options.r1 and options.r2)]
    spec = QuantizationSpec(
        method=QuantMethod.QUAROT,
        weights_bits=options.weights_bits,
        weights_dtype=f"int{options.weights_bits}",
        format="compressed-tensors",
        group_size=options.group_size,
        symmetric=options.symmetric,
        activations_bits=options.activations_bits,
        lm_head_dtype=context.head_dtype,
        tags=tuple(tags),
    )
    rounds = spec.activations_bits is not None
    notes = check_servable_activations(spec) if rounds else check_servable(spec, context.model_config)
    if options.r1 and context.model_config.get("tie_word_embeddings"):
        untied = "R1 rotates embeddings and output head differently: they are untied, and the checkpoint holds both."
        notes = (untied, *notes)
    return QuantizationPlan(
        method=QuantMethod.QUAROT,
        stage=context.stage,
        spec=spec,
        adapter=context.adapter,
        options=asdict(options) | {"calibrated": options.rounding == "gptq"},
        compute_dtype=context.compute_dtype,
        notes=notes,
    )


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Rotate the model, then round it block by block."""
    from quantkit.numerics.capture import Block
    from quantkit.numerics.error_feedback import error_feedback
    from quantkit.numerics.grids import QuantizedWeight, quantize
    from quantkit.numerics.hadamard import rotation
    from quantkit.quantizing import solve_blocks, solve_weights, store_in_format, uniform_grid
    from quantkit_plugins.quarot.solver import rotate_model

    options = plan.options
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    residual = rotation(config.hidden_size, seed=options["seed"]) if options["r1"] else None
    values = rotation(head, seed=options["seed"] + 1) if options["r2"] else None
    rotate_model(model, residual, values, ignore=tuple(work.ignore))
    grid = uniform_grid(plan.spec, model.dtype, search=options["scale_search"])

    def solve(block: Block) -> dict[str, QuantizedWeight]:
        groups = block.groups()
        damp = options["damp_percent"]
        return {
            name: error_feedback(block.linears[name].weight.data, hessian, grid, damp_percent=damp, layer=name).weight
            for group, hessian in zip(groups, block.hessians(groups, level=options["equal_tokens"]), strict=True)
            for name in group
        }

    if options["rounding"] == "gptq":
        return store_in_format(plan, model, solve_blocks(plan, model, calibration, work, solve, grid=grid, reference=True))

    def rounded(name: str, linear: Any) -> QuantizedWeight:
        return quantize(linear.weight.data, grid, layer=name)

    return store_in_format(plan, model, solve_weights(plan, model, work, rounded, grid=grid))


@hookimpl
def prepare_model(model: Any) -> Any:
    """Unpack the layers, so that gradients pass, and freeze the base."""
    from quantkit.quantizing import prepare_for_training

    return prepare_for_training(model)


@hookimpl
def post_train_merge(model: Any) -> Any:
    """Fold the adapters into the dequantized base, which stays rotated; the result is float32."""
    from quantkit.merging import fold_adapters

    return fold_adapters(model)
