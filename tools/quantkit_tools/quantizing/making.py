"""Which steps turn a dense model into a quantized artifact? The same for `quantkit quantize` and for the base of a run.

Observe the source on held-out text, quantize block by block, judge, write, load plainly, judge again, commit. Judging only
in memory would miss what the format or the loader changes; loading the source a second time would double the time. Prompts
are answered once, by the model that was loaded again: it is what users get, and must predict what the one in memory does.
"""

import gc
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit import console, gate
from quantkit.backends import keep_layout
from quantkit.calibrating import Texts
from quantkit.calibration import QuantizationWork
from quantkit.environment import describe_environment
from quantkit.errors import VerificationError
from quantkit.files import remove_work
from quantkit.gate import GateLimits
from quantkit.layers import features, linear_layers
from quantkit.measure import check_model, loaded_spec
from quantkit.memory import MemoryLog, free_bytes
from quantkit.methods import Methods
from quantkit.modeling import ModelSource, load_base, load_source
from quantkit.plan import AdapterPlan, QuantizationPlan
from quantkit_registry.records import ArtifactRecord, BaseReference, Parent

if TYPE_CHECKING:
    from quantkit.numerics.blockwise import BlockReport

LARGEST_RELOAD_KL = 1e-3
"""Mean KL divergence between the model in memory and the saved folder, loaded again, above which nothing is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """One artifact to be made: from which weights, by which plan, under which name, and what its record says besides."""

    source: ModelSource
    plan: QuantizationPlan
    dtype: str
    """Data type of the source's dense weights."""
    name: str
    target: Path
    device: str
    limits: GateLimits
    base: BaseReference
    identity: str
    """Hash of the source's content."""
    parents: tuple[Parent, ...] = ()
    adapter: AdapterPlan | None = None
    """The adapters the source was trained with."""
    data: dict[str, Any] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    overwrite: bool = False
    trust_remote_code: bool = False

    @property
    def work(self) -> Path:
        """Folder of the finished blocks, kept until the artifact is committed."""
        return self.target.parent / ".quantizing" / self.name


@dataclass(slots=True)
class Blocks:
    """What was reported about the blocks so far."""

    bar: Any
    seconds: float = 0.0
    resumed: int = 0
    errors: dict[str, float] = field(default_factory=dict)

    def see(self, report: "BlockReport") -> None:
        """Show a finished block: its error, and how long it took."""
        self.seconds += report.duration_s
        self.resumed += report.resumed
        shown: dict[str, object] = {}
        if report.output_error is not None:
            self.errors[report.name] = round(report.output_error, 8)
            shown = {"error": report.output_error}
        self.bar.advance(1, **shown, **({"resumed": self.resumed} if report.resumed else {}))


def make_quantized(making: Making, texts: Texts, tokenizer: Any, methods: Methods) -> dict[str, Any]:
    """Quantize, judge and save; return the record as written. What a killed run has finished is used again.

    Raises:
        UsageError: a layer cannot be quantized and is not ignored, or the target exists.
        VerificationError: what was written, loaded again, is another model than the one in memory.
    """
    from quantkit.saving import save_artifact
    from quantkit.storable import store_dense_as

    memory = MemoryLog()
    place = _place(making)
    with memory.stage("observe source"):
        model = load_source(making.source, methods, device=place, trust_remote_code=making.trust_remote_code)
        weights = _weights(model)
        reference = gate.observe(model, tokenizer, texts.held_out)
    with memory.stage("quantize"):
        model, blocks = _quantize(making, model, texts, methods)
    with memory.stage("judge"):
        observed = gate.observe(model, tokenizer, texts.held_out, answers=False)
    in_memory = gate.compare(reference, observed, texts.held_out)
    console.say(f"quantized against source: {in_memory}")
    model = store_dense_as(model, making.dtype, lm_head_dtype=_other_head(making))

    def verify(folder: Path) -> dict[str, Any]:
        measured_here = in_memory
        with memory.stage("load again and judge"):
            found = _judge_again(
                making,
                folder,
                tokenizer=tokenizer,
                text=texts.held_out,
                behaviours=(reference, observed),
                methods=methods,
            )
            measures = found.pop("measures", None)
            if measures is None:
                answered = gate.answered(observed, model, tokenizer, texts.held_out)
                measured_here = gate.compare(reference, answered, texts.held_out)
                console.say(f"in memory against source: {measured_here}")
        judged = measures or measured_here
        reasons = gate.judge(judged, making.limits)
        if said := gate.untold(judged, making.limits):
            console.say(f"answers are not judged: {said}")
        return {
            "gate": {
                "outcome": "failed" if reasons else "passed",
                "reasons": reasons,
                "limits": asdict(making.limits),
                "text": texts.held_out.to_dict(),
                "in_memory": measured_here.to_dict(),
                "reloaded": None if measures is None else measures.to_dict(),
            },
            **found,
        }

    record = _record(making, texts, memory, blocks, weights)
    written = save_artifact(
        making.target, model=model, tokenizer=tokenizer, record=record.to_dict(), verify=verify, overwrite=making.overwrite
    )
    remove_work(making.work)
    return written


def _quantize(making: Making, model: Any, texts: Texts, methods: Methods) -> tuple[Any, Blocks]:
    from quantkit.numerics.capture import find_blocks

    with console.progress(f"{making.plan.method}: blocks", len(find_blocks(model)[1]), unit="blocks") as bar:
        blocks = Blocks(bar)
        work = QuantizationWork(
            device=making.device, folder=making.work, ignore=making.ignore, identity=making.identity, report=blocks.see
        )
        if methods.load_kwargs(making.plan):
            del model
            gc.collect()
            model = load_base(
                making.source.path,
                plan=making.plan,
                methods=methods,
                device=making.device,
                revision=making.source.revision,
                trust_remote_code=making.trust_remote_code,
                calibration=texts.calibration,
                work=work,
            )
        else:
            model = methods.quantize_model(making.plan, model, texts.calibration, work)
            check_model(model, loaded_spec(making.plan))
    return model, blocks


def _judge_again(
    making: Making,
    folder: Path,
    *,
    tokenizer: Any,
    text: gate.GateText,
    behaviours: tuple[gate.Behaviour, gate.Behaviour],
    methods: Methods,
) -> dict[str, Any]:
    """Return measures of the saved folder against the source, and how far it is from the model in memory."""
    needed = sum(path.stat().st_size for path in folder.glob("*.safetensors")) * 4
    if (free := free_bytes(making.device)) < needed:
        said = f"not done: it needs {console.format_bytes(needed)}, {console.format_bytes(free)} are free"
        console.warn(f"loading again: {said}")
        return {"reload": said}
    again, loader = _plain(making, folder, methods)
    observed = gate.observe(again, tokenizer, text)
    reference, in_memory = behaviours
    drift = gate.compare(in_memory, observed, text)
    head_changed = _other_head(making) is not None
    if drift.mean_kl > LARGEST_RELOAD_KL and not head_changed:
        raise VerificationError(f"the saved model is not the one in memory: {drift}; nothing was kept")
    measures = gate.compare(reference, observed, text)
    console.say(f"loaded again ({loader}) against source: {measures}")
    return {
        "measures": measures,
        "reload": {"loader": loader, "mean_kl": drift.mean_kl, "top1_agreement": drift.top1_agreement},
    }


def _plain(making: Making, folder: Path, methods: Methods) -> tuple[Any, str]:
    from quantkit.backends.packed_checkpoints import is_packed_checkpoint

    if is_packed_checkpoint(folder):  # transformers asks for gptqmodel there
        source = ModelSource(path=str(folder), spec=making.plan.spec)
        return load_source(source, methods, device=making.device), "quantkit"
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        again = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype="auto",
            device_map={"": making.device},
            use_safetensors=True,
            trust_remote_code=making.trust_remote_code,
        )
    finally:
        if bars:
            logging.enable_progress_bar()
    keep_layout(again)
    return again.eval(), "transformers"


def _record(making: Making, texts: Texts, memory: MemoryLog, blocks: Blocks, weights: int) -> ArtifactRecord:
    quantized: dict[str, Any] = {
        "weights": weights,
        "ignored": list(making.ignore),
        "seconds_per_million_weights": round(blocks.seconds / weights * 1e6, 4) if weights else None,
        "resumed_blocks": blocks.resumed,
        "block_errors": blocks.errors,
    }
    calibration = texts.to_dict()
    return ArtifactRecord(
        name=making.name,
        kind="model",
        quantization=making.plan.spec,
        recipe=making.plan,
        base=making.base,
        adapter=making.adapter,
        parents=making.parents,
        data=making.data | ({"calibration": calibration} if calibration else {}),
        memory=memory.to_dict(),
        environment=describe_environment(making.device),
        verification={"quantized": quantized},
    )


def _place(making: Making) -> str:
    """Return where the whole model is kept: on the device if it fits there with room for a copy, else on the CPU."""
    files = Path(making.source.path)
    size = sum(path.stat().st_size for path in files.glob("*.safetensors")) if files.is_dir() else 0
    return making.device if making.device == "cpu" or free_bytes(making.device) > 3 * size > 0 else "cpu"


def _weights(model: Any) -> int:
    return sum(inputs * outputs for inputs, outputs in map(features, linear_layers(model).values()))


def _other_head(making: Making) -> str | None:
    head = making.plan.spec.lm_head_dtype
    return None if head == making.dtype else head
