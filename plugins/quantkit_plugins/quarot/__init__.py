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

from dataclasses import dataclass
from typing import Any, Literal

from quantkit import MethodInfo, PlanContext, QuantizationPlan, QuantMethod, UsageError, hookimpl, shared_hooks
from quantkit.calibration import Calibration, QuantizationWork
from quantkit.integer_plans import BLOCKS, SETTING, IntegerOptions, integer_method, integer_plan

UNTIED = "R1 rotates embeddings and output head differently: they are untied, and the checkpoint holds both."


@dataclass(frozen=True)
class QuarotOptions(IntegerOptions):
    """Settings of QuaRot."""

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
        super().__post_init__()
        if not 0.0 <= self.damp_percent < 1.0:
            raise UsageError(f"damp_percent is {self.damp_percent}; it must be between 0 and 1")
        if self.rounding == "rtn" and self.damp_percent != QuarotOptions.damp_percent:
            raise UsageError("damp_percent is set, but rounding rtn uses no Hessian; choose rounding gptq or leave it out")
        if self.rounding == "rtn" and not self.equal_tokens:
            raise UsageError("equal_tokens is off, but rounding rtn counts no tokens; choose rounding gptq or leave it out")
        if not (self.r1 or self.r2):
            raise UsageError("r1 and r2 are both off; without a rotation this is plain rounding: use GPTQ or RTN")


@hookimpl
def declare_method() -> MethodInfo:
    """Declare QuaRot."""
    return integer_method(
        QuantMethod.QUAROT,
        "Rotations folded into the weights, then GPTQ or rounding to nearest",
        QuarotOptions,
        paper="arXiv:2404.00456",
        takes=f"{BLOCKS} 71 {SETTING}, 32 × 256 tokens; with rounding rtn the weights alone.",
        limits=(
            "No online rotations and no quantized cache: no common format has a place for them. Where no channels are"
            " outliers, rotation can lose (`benchmarks/rotation.py`)."
        ),
        calibration="optional",
    )


@hookimpl
def build_quantization_plan(options: QuarotOptions, context: PlanContext) -> QuantizationPlan:
    """Plan rotated integer weights; the head stays dense. What tells variants apart stands in tags."""
    tags = [name for name, on in (("r1", options.r1), ("r2", options.r2)) if on and not (options.r1 and options.r2)]
    tied = options.r1 and context.model_config.get("tie_word_embeddings")
    plan = integer_plan(QuantMethod.QUAROT, options, context, tags=tags, notes=(UNTIED,) if tied else ())
    return plan.with_changes(options={**plan.options, "calibrated": options.rounding == "gptq"})


@hookimpl
def quantize_model(plan: QuantizationPlan, model: Any, calibration: Calibration | None, work: QuantizationWork) -> Any:
    """Rotate the model, then round it block by block."""
    from quantkit.numerics.capture import Block
    from quantkit.numerics.error_feedback import error_feedback
    from quantkit.numerics.grids import QuantizedWeight
    from quantkit.numerics.hadamard import rotation
    from quantkit.quantizing import solve_blocks, store_in_format, uniform_grid
    from quantkit_plugins.quarot.solver import rotate_model

    options = plan.options
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    residual = rotation(config.hidden_size, seed=options["seed"]) if options["r1"] else None
    values = rotation(head, seed=options["seed"] + 1) if options["r2"] else None
    rotate_model(model, residual, values, ignore=tuple(work.ignore))
    if options["rounding"] == "rtn":
        return shared_hooks.round_to_nearest(plan, model, work)
    grid = uniform_grid(plan.spec, model.dtype, search=options["scale_search"])

    def solve(block: Block) -> dict[str, QuantizedWeight]:
        groups = block.groups()
        damp = options["damp_percent"]
        return {
            name: error_feedback(block.linears[name].weight.data, hessian, grid, damp_percent=damp, layer=name).weight
            for group, hessian in zip(groups, block.hessians(groups, level=options["equal_tokens"]), strict=True)
            for name in group
        }

    return store_in_format(plan, model, solve_blocks(plan, model, calibration, work, solve, grid=grid, reference=True))


prepare_model = shared_hooks.prepare_unpacked
post_train_merge = shared_hooks.fold_into_dense
