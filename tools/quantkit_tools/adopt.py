"""How does an adapter made elsewhere become an artifact with a recipe? Its user states the recipe, and what can be is checked.

`adapter_config.json` does not say whether the base was quantized; a folder called `4bits_r4` may hint at it, which is printed
and never believed. The adapter is loaded on the base as stated, must fit it, be finite and change what it predicts, and is
copied; the foreign folder is not touched. Files cannot prove a recipe wrong, so losses with and without it are measured.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.environment import describe_environment
from quantkit.errors import UsageError, VerificationError
from quantkit.files import refuse_existing, sha256_of
from quantkit.headers import read_object
from quantkit.layout import counted
from quantkit.methods import Methods, installed_methods, require_usable
from quantkit.modeling import ModelSource, load_source, load_tokenizer, resolve_compute_dtype, resolve_device
from quantkit.plan import AdapterPlan, PlanContext, QuantizationPlan
from quantkit.spec import DENSE_BITS
from quantkit_registry.adapters import ADAPTER_CONFIG, read_adapter
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.hints import hint_of
from quantkit_registry.names import ArtifactName, format_name
from quantkit_registry.records import RECORD_FILE, ArtifactRecord, BaseReference
from quantkit_registry.store import default_root
from quantkit_registry.study import is_ours
from quantkit_tools.adopting.flags import AdoptConfig, parse_adopt_flags

FEW_BITS = {"4": ("QLORA", "4"), "8": ("INT8", "8")}
"""Bits that a folder's name hints at → the method that usually stands behind them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoption:
    """What will be recorded of an adapter."""

    config: AdoptConfig
    folder: Path
    base: str
    """Absolute path of a folder, or a hub id."""
    plan: QuantizationPlan
    name: str
    target: Path
    device: str
    hint: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "name": self.name,
            "artifact": str(self.target),
            "exists": self.target.exists(),
            "base": self.base,
            "recipe": self.plan.to_dict(),
            "hint": self.hint,
        }


def main(arguments: list[str]) -> int:
    """Run `quantkit registry adopt FOLDER FLAGS`."""
    flags = parse_adopt_flags(arguments)
    if flags.json:
        console.use_stderr()
    methods = installed_methods()
    adoption = plan_adoption(flags.config, methods)
    announce(adoption)
    if flags.dry_run:
        if flags.json:
            console.emit_json(adoption.to_dict())
        return 0
    refuse_existing(adoption.target, overwrite=flags.config.overwrite)
    written = adopt(adoption, methods)
    console.say(f"artifact: {adoption.target}", style="bold")
    console.say(f"next: quantkit merge {adoption.target}, or quantkit evaluate {adoption.target}")
    if flags.json:
        found = written["verification"]["adopted"]
        console.emit_json({"artifact": str(adoption.target), "name": adoption.name, "adopted": found})
    return 0


def plan_adoption(config: AdoptConfig, methods: Methods) -> Adoption:
    """Decide base, recipe and name from the statement and the adapter's files.

    Raises:
        UsageError: no recipe or base is stated, the folder holds no adapter that can be described, or it is ours already.
    """
    from quantkit.skeleton import is_local, read_skeleton

    folder = Path(config.folder).expanduser()
    if not (folder / ADAPTER_CONFIG).is_file():
        raise UsageError(f"{folder}: no {ADAPTER_CONFIG}; an adapter's folder, as PEFT saves it, is wanted")
    if (folder / RECORD_FILE).is_file() and is_ours(read_object(folder / RECORD_FILE)):
        raise UsageError(f"{folder}: is an artifact of quantkit, which has its recipe; there is nothing to adopt")
    stored = read_adapter(folder)
    hint = hint_of(folder.name)
    if config.method is None:
        raise UsageError(_state_it(folder, hint, config.base or stored.base))
    base = config.base or stored.base
    if base is None:
        raise UsageError(f"{folder}: {ADAPTER_CONFIG} names no base model; --base names the one it was trained on")
    device = resolve_device(config.device)
    require_usable(methods, [config.method], device.partition(":")[0])
    adapter = adapter_plan(folder)
    skeleton = read_skeleton(base, revision=config.revision, trust_remote_code=config.trust_remote_code)
    dtype = str(skeleton.config.dtype).removeprefix("torch.")
    context = PlanContext(
        adapter=adapter,
        device=device.partition(":")[0],
        compute_dtype=resolve_compute_dtype(config.compute_dtype, device),
        dense_dtype=dtype if dtype in DENSE_BITS else "bfloat16",
        model_config=skeleton.config.to_dict(),
    )
    plan = methods.plan(config.method, config.method_options, context)
    if plan.adapter != adapter:
        raise UsageError(
            f"{folder}: is a {adapter.label} adapter, and {plan.method} carries {plan.adapter.label}; it was trained by another"
            " method (4-bit bases with DoRa, VeRa or fp4: BNB4BIT)"
        )
    if plan.spec.is_quantized and not methods.load_kwargs(plan):
        raise UsageError(
            f"{plan.method} quantizes a base into a folder of its own; an adapter whose configuration names that folder needs"
            " no adoption (quantkit evaluate finds its recipe there)"
        )
    name = format_name(ArtifactName.of(base=base, dataset=config.dataset, adapter=adapter, recipe=plan.spec))
    root = default_root() if config.registry is None else Path(config.registry).expanduser()
    absolute = str(Path(base).expanduser().resolve()) if is_local(base) else base
    return Adoption(
        config=config, folder=folder, base=absolute, plan=plan, name=name, target=root / name, device=device, hint=hint
    )


def adapter_plan(folder: Path) -> AdapterPlan:
    """Return the adapter that a folder's configuration describes.

    Raises:
        UsageError: it is of a kind, or has settings, that a recipe cannot describe; the text names them.
    """
    from quantkit.merging.adapter_settings import read_settings

    settings = read_settings(folder)
    patterns = [name for name in ("rank_pattern", "alpha_pattern") if getattr(settings, name)]
    if patterns:
        raise UsageError(
            f"{folder}: {ADAPTER_CONFIG} has a {patterns[0]}; a recipe has one rank and one alpha for all layers, so it cannot"
            " be recorded truly"
        )
    targets = settings.config.get("target_modules")
    if isinstance(targets, str) and targets != "all-linear":
        raise UsageError(
            f"{folder}: target_modules is the expression {targets[:60]!r}; a recipe lists layers. Write the names it matches"
            " into a copy of the configuration"
        )
    return AdapterPlan(
        kind=settings.kind,
        r=settings.r,
        lora_alpha=settings.alpha if settings.kind != "VeRa" else float(2 * settings.r),
        lora_dropout=float(settings.config.get("lora_dropout") or settings.config.get("vera_dropout") or 0.0),
        target_modules=tuple(sorted(targets)) if isinstance(targets, list) else ("all-linear",),
        modules_to_save=settings.modules_to_save,
        use_rslora=settings.use_rslora,
    )


def announce(adoption: Adoption) -> None:
    """Print what will be recorded."""
    plan = adoption.plan
    rows: list[tuple[str, object]] = [
        ("adapter", f"{plan.adapter.label} in {adoption.folder}"),
        ("base", adoption.base),
        ("stated", f"{plan.method}: {plan.spec.weights_dtype} weights, computed in {plan.compute_dtype}"),
        ("hint", adoption.hint or "none"),
        ("as", str(adoption.target)),
    ]
    console.table("Adoption", ["", ""], rows)
    for note in plan.notes:
        console.warn(note)


def adopt(adoption: Adoption, methods: Methods) -> dict[str, Any]:
    """Load, check and measure the adapter as stated, and write the artifact; return the record as written.

    Raises:
        UsageError: base or adapter cannot be loaded, or the target exists.
        VerificationError: the adapter does not fit the base, was never trained, or changes nothing.
    """
    from quantkit.merging.report import observe_reference
    from quantkit.saving import save_artifact
    from quantkit_tools.adopting.rows import rows_of

    config, plan = adoption.config, adoption.plan
    trust = config.trust_remote_code
    source = ModelSource(
        path=str(adoption.folder), kind="adapter", base=adoption.base, revision=config.revision, plan=plan, spec=plan.spec
    )
    model = load_source(source, methods, device=adoption.device, trust_remote_code=trust)
    own = (adoption.folder / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(
        str(adoption.folder) if own else adoption.base, revision=None if own else config.revision, trust_remote_code=trust
    )
    rows = rows_of(adoption.base, config.revision, config.data, tokenizer)
    reference = observe_reference(model, rows)
    change = float((reference.adapter.logits - reference.base.logits).abs().max())
    if not change > 0:
        raise VerificationError(f"{adoption.folder}: the adapter changes no logit of {adoption.base}; it was never trained")
    gain = reference.base.loss - reference.adapter.loss
    console.say(
        f"on {counted(len(rows.rows), 'row')} of {rows.source}: loss {reference.base.loss:.4g} on the base,"
        f" {reference.adapter.loss:.4g} with the adapter; logits change by up to {change:.3g}"
    )
    if config.data is not None and gain <= 0:
        console.warn(f"the adapter does not help on {config.data}: is the stated recipe the one it was trained with?")
    files = [adoption.folder / ADAPTER_CONFIG, *sorted(adoption.folder.glob("adapter_model*"))]
    record = ArtifactRecord(
        name=adoption.name,
        kind="adapter",
        quantization=plan.spec,
        recipe=plan,
        base=BaseReference(
            name_or_path=adoption.base,
            revision=config.revision,
            fingerprint=fingerprint_base(adoption.base, revision=config.revision),
        ),
        adapter=plan.adapter,
        training={"source": f"elsewhere; adopted from a folder called {adoption.folder.name}"},
        environment=describe_environment(adoption.device),
        verification={
            "adopted": {
                "stated": {"method": plan.method, "options": dict(config.method_options)},
                "hint": adoption.hint,
                "files": {file.name: sha256_of(file) for file in files},
                "rows": rows.to_dict(),
                "largest_logit_change": change,
                "loss_base": reference.base.loss,
                "loss_adapter": reference.adapter.loss,
            }
        },
    )
    return save_artifact(adoption.target, model=model, tokenizer=tokenizer, record=record.to_dict(), overwrite=config.overwrite)


def _state_it(folder: Path, hint: str | None, base: str | None) -> str:
    """Return the question that only the adapter's user can answer, with the likely answer spelt out."""
    bits = next((digit for digit in FEW_BITS if hint and f"({digit} bits)" in hint), None)
    likely = FEW_BITS[bits][0] if bits else "METHOD"
    told = f"{hint}; if so, confirm it with" if hint and bits else "say it with"
    return (
        f"{folder}: which quantization its base had in training is recorded nowhere; {told}"
        f" quantkit registry adopt {folder} --base {base or 'BASE'} --method {likely}"
    )
