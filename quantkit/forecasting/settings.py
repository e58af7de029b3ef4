"""What of a run decides its memory and time?

The settings a forecast reads, taken from a `RunConfig` and its plan (`RunSettings.of`) or written down for a run of another
trainer. Reading the `RunConfig` itself everywhere would tie the formulas to settings that say nothing about memory, and leave
no place for what only the data or the machine knows: how long rows are, how many positions are learnt.
"""

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from quantkit.errors import UsageError
from quantkit.forecasting.storage import UNPACKED
from quantkit.merging.decoding import LEAVES
from quantkit.plan import AdapterPlan, QuantizationPlan
from quantkit.spec import DENSE_BITS
from quantkit.training.recompute import recompute_of

if TYPE_CHECKING:
    from quantkit.config import RunConfig

Logits = Literal["tiles", "all", "chunks"]
Strategy = Literal["single", "ddp", "fsdp", "device_map"]
STRATEGIES = ("single", "ddp", "fsdp", "device_map")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """The settings of one run, as far as memory and time depend on them.

    Raises:
        UsageError: a value is out of range.
    """

    plan: QuantizationPlan
    device: str = "cpu"
    """Device type: `cpu` or `cuda`."""
    rows: int = 8
    """Rows of one forward pass (`per_device_train_batch_size`), or packs of rows."""
    length: int = 1024
    """Tokens of the longest row (`max_length`, or what the data has)."""
    mean_length: float | None = None
    """Tokens of an average row; None: `length`."""
    tokens: int | None = None
    """Tokens of the fullest batch; None: `rows` times `length`."""
    supervised: int | None = None
    """Positions of the fullest batch that a loss is taken on; None: all of its tokens."""
    accumulation: int = 1
    """Forward passes of an optimizer step (`gradient_accumulation_steps`)."""
    recompute: str = "none"
    """What is computed again, as `quantkit.recompute` writes it; `auto` counts as none until `quantkit.forecasting.choice`."""
    optim: str = "adamw_torch"
    logits: Logits = "tiles"
    """How the loss sees logits: in tiles of positions; those of all positions at once; as torchtune chunks them, the loss
    of an eighth at a time over logits that are all there."""
    fused: bool = True
    """Whether adapters are computed in place (`fused_adapters`)."""
    offload: bool = False
    """Whether activations wait in the CPU's memory (`activation_offloading`)."""
    arithmetic: str = "bfloat16"
    """Data type of matrix products."""
    trained_dtype: str = "float32"
    """Data type of trained parameters, their gradients and optimizer states."""
    dense: str | None = None
    """Data type of frozen embeddings, head and norms where it is another than the rest's, as PEFT's preparation of quantized
    models makes it; None: the same."""
    merges: bool = True
    """Whether the run folds its adapters in at its end."""
    folds_in_memory: bool = False
    """Whether it does so in a float32 copy of the whole model, not tensor by tensor from files."""
    save_dtype: str = "bfloat16"
    processes: int = 1
    """GPUs, or processes on a CPU."""
    strategy: Strategy = "single"
    compiled: bool = False
    """Whether `torch.compile` fuses the elementwise operations of a block, and of the loss."""
    steps: int | None = None
    """Optimizer steps, where they are known."""
    calibration_tokens: int = 0
    """Tokens that a method quantizes the base with, before anything is trained."""

    def __post_init__(self) -> None:
        for name in ("rows", "length", "accumulation", "processes"):
            if getattr(self, name) < 1:
                raise UsageError(f"forecast: {name} is {getattr(self, name)}; it must be at least 1")
        for name in ("arithmetic", "trained_dtype", "save_dtype"):
            if getattr(self, name) not in DENSE_BITS:
                raise UsageError(f"forecast: {name} is {getattr(self, name)!r}; known: {', '.join(DENSE_BITS)}")
        if self.strategy not in STRATEGIES:
            raise UsageError(f"forecast: strategy is {self.strategy!r}; known: {', '.join(STRATEGIES)}")
        if self.strategy == "single" and self.processes > 1:
            raise UsageError(f"forecast: {self.processes} processes need a strategy: ddp, fsdp or device_map")

    @property
    def adapter(self) -> AdapterPlan:
        """Return the adapter that the plan trains."""
        return self.plan.adapter

    @property
    def quantizes_base(self) -> bool:
        """Return whether the method makes a quantized base first, an artifact of its own."""
        return self.plan.spec.is_quantized and self.plan.spec.format in UNPACKED

    @property
    def varied(self) -> bool:
        """Return whether rows are of different lengths, as they are unless it is known that they are not."""
        return self.mean_length != self.length

    @property
    def batch_tokens(self) -> int:
        """Return the tokens of the fullest batch."""
        return self.rows * self.length if self.tokens is None else self.tokens

    @property
    def learnt_tokens(self) -> int:
        """Return the positions of the fullest batch that a loss is taken on."""
        return self.batch_tokens if self.supervised is None else min(self.supervised, self.batch_tokens)

    @property
    def computes_in_bytes(self) -> int:
        """Return the bytes of a number in matrix products."""
        return DENSE_BITS[self.arithmetic] // 8

    def held_dtype(self, stored: str) -> str:
        """Return the data type of frozen dense weights while training, for a base whose files hold them in `stored`.

        As `quantkit.training.precision` has it: bfloat16 numbers are held as such for bfloat16 arithmetic, however they were
        loaded; other frozen weights in the data type they are loaded in.
        """
        if self.arithmetic == "float32":
            return "float32"
        return "bfloat16" if stored == "bfloat16" or self.plan.spec.format in UNPACKED else self.plan.compute_dtype

    @property
    def hidden_bytes(self) -> int:
        """Return the bytes of a number of the hidden states between blocks."""
        wide = self.trained_dtype if self.adapter.kind == "NoPeft" else self.plan.compute_dtype
        return 4 if self.arithmetic == "float32" else DENSE_BITS[wide] // 8

    @property
    def composes_attention(self) -> bool:
        """Whether attention is composed of products (`quantkit.training.tiled_attention`) and keeps no output of its own."""
        return self.device == "cpu" and self.arithmetic == "bfloat16"

    @property
    def trained_bytes(self) -> int:
        """Return the bytes of a trained parameter."""
        return DENSE_BITS[self.trained_dtype] // 8

    def with_changes(self, **changes: Any) -> Self:
        """Return a copy with these fields replaced."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return asdict(self) | {"plan": self.plan.to_dict()}

    @classmethod
    def of(
        cls,
        config: "RunConfig",
        plan: QuantizationPlan,
        *,
        device: str,
        arithmetic: str,
        folds_exactly: bool = True,
        **known: Any,
    ) -> Self:
        """Return the settings of a run; `known` adds what config and plan do not say (tokens, processes, strategy, …).

        `arithmetic` is the data type that training computes in (`quantkit.training.precision`); `folds_exactly` is false for a
        method with a `post_train_merge` of its own (`Methods.folds_exactly`).
        """
        merges = config.merge_after_train and plan.adapter.kind != "NoPeft"
        settings: dict[str, Any] = {
            "rows": config.per_device_train_batch_size,
            "length": config.max_length,
            "accumulation": config.gradient_accumulation_steps,
            "recompute": recompute_of(config),
            "optim": config.optim or plan.optim or "adamw_torch",
            "logits": "tiles" if config.loss_positions == "supervised" else "all",
            "fused": config.fused_adapters,
            "offload": config.activation_offloading,
            "strategy": _strategy(config, known.get("processes", 1)),
            "merges": merges,
            "folds_in_memory": merges and _folds_in_memory(config, plan, exactly=folds_exactly),
            "save_dtype": config.save_dtype,
            "steps": config.max_steps if config.max_steps > 0 else None,
        }
        return cls(plan=plan, device=device.partition(":")[0], arithmetic=arithmetic, **(settings | known))


def _folds_in_memory(config: "RunConfig", plan: QuantizationPlan, *, exactly: bool) -> bool:
    """Return whether files do not tell the folded model: rounded again, a base that PiSSA changed, or, unless it goes into the
    original base, a format not decoded or a method's own merge."""
    if plan.spec.is_quantized and config.merge == "base":
        return plan.adapter.init_lora_weights == "pissa"
    undecoded = plan.spec.is_quantized and plan.spec.format not in LEAVES
    return config.merge == "requantized" or plan.adapter.init_lora_weights == "pissa" or undecoded or not exactly


def _strategy(config: "RunConfig", processes: int) -> Strategy:
    """Return how several GPUs share a run: as its settings say, else each has a copy."""
    if processes == 1:
        return "single"
    return "device_map" if config.device_map is not None else "fsdp" if config.sharding == "fsdp2" else "ddp"
