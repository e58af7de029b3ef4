"""How does an export come to be? Repacked, dequantized, converted or by its plugin, and only then under its name.

The source is run on fixed token ids, the result is written into a temporary folder, loaded as anyone would load it, and run on
the same ids (`quantkit_tools.exporting.proof`); weights and codes are compared besides.
"""

import gc
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.errors import VerificationError
from quantkit.exporting import Answer, missing
from quantkit.fidelity import Fidelity, compare_logits, probe_logits
from quantkit.files import artifact_hash, new_folder, refuse_existing, write_text
from quantkit.methods import Methods
from quantkit.modeling import load_base, load_tokenizer, one_line
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.saving import CARD, SPARE_BYTES, finish_written, require_space, save_artifact
from quantkit_registry.store import Registry
from quantkit_tools.exporting.asked import Asked
from quantkit_tools.exporting.naming import dense_dtype, new_record, new_spec, planned_name, source_spec
from quantkit_tools.exporting.proof import checked_fidelity, probe_rows, require_memory, size_of
from quantkit_tools.merging.check import load_plainly
from quantkit_tools.opening import Opened, open_path
from quantkit_tools.verdict import failed_gate


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """One export that is being made."""

    asked: Asked
    answer: Answer
    opened: Opened
    target: Path
    methods: Methods

    @property
    def source(self) -> Path:
        """Return the source's folder."""
        return Path(self.opened.source.path)

    @property
    def trust(self) -> bool:
        """Return whether code that comes with a checkpoint may run."""
        return self.asked.flags.trust_remote_code

    def record(self, **verification: Any) -> dict[str, Any]:
        """Return the record of what is written."""
        return new_record(self.asked, artifact=artifact_hash(self.source), verification=verification)

    def plan(self, dtype: str) -> QuantizationPlan:
        """Return the plan by which the source is loaded, computed with in `dtype`."""
        spec = source_spec(self.asked)
        return QuantizationPlan(
            method=spec.method, stage=Stage.BASE, spec=spec, adapter=AdapterPlan(kind="NoPeft"), compute_dtype=dtype
        )

    def load(self, dtype: str) -> Any:
        """Return the source as its layers compute in `dtype`, measured."""
        if self.asked.holding.source == "fp8":
            return _dequantized_by_transformers(self.source, dtype)
        plan = self.plan(dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # transformers': that what was passed overrules the checkpoint's configuration
            return load_base(str(self.source), plan=plan, methods=self.methods, device="cpu", trust_remote_code=self.trust)

    def load_written(self, folder: Path) -> Any:
        """Return what was written, loaded as anyone would load it."""
        return load_plainly(folder, new_spec(self.asked), self.methods, device="cpu", trust_remote_code=self.trust)


def make(asked: Asked, answer: Answer, methods: Methods) -> dict[str, Any]:
    """Write what was asked for; return where it is and how it was checked.

    Raises:
        UsageError: the target exists, memory is short, or the weights do not fit the format.
        VerificationError: what was written is another model than its source; nothing is kept.
    """
    opened, target = _open(asked, methods), planned_name(asked)[1]
    export = Export(asked=asked, answer=answer, opened=opened, target=target, methods=methods)
    refuse_existing(target, overwrite=asked.flags.overwrite)
    require_memory(export.source, quantized=opened.source.spec.is_quantized)
    ways = {"repack": _repack, "dequantize": _dequantize, "convert": _convert, "plugin": _by_plugin}
    checked = ways[answer.step](export)
    console.say(f"artifact: {target}", style="bold")
    if marks := failed_gate(Registry(target.parent).find(target.name)):
        console.warn(f"{target.name} is marked, as its source is: {marks}")
    said = [f"{name.replace('_', ' ')} {value:,}" for name, value in checked.items()]
    console.say(f"checked: {', '.join(said)}")
    return {"artifact": str(target), "name": target.name, "written": True, "checked": checked}


def check_as_it_is(asked: Asked, answer: Answer, methods: Methods) -> dict[str, Any]:
    """Load a folder that needs no export, where transformers is the target; return what was seen. Nothing is written."""
    if asked.flags.to != "transformers" or asked.detection.kind == "adapter" or asked.holding.stored is None:
        console.say("nothing was written: it is read as it stands")
        return {"artifact": asked.detection.path, "written": False}
    if asked.holding.stored.kind == "gguf":
        console.say("nothing was written: it is read as it stands, with gguf_file=")
        return {"artifact": asked.detection.path, "written": False}
    opened = _open(asked, methods)
    require_memory(Path(opened.source.path), quantized=opened.source.spec.is_quantized)
    trust = asked.flags.trust_remote_code
    model = load_plainly(Path(opened.source.path), opened.source.spec, methods, device="cpu", trust_remote_code=trust)
    logits = probe_logits(model, probe_rows(model))
    if not bool(logits.isfinite().all()):
        raise VerificationError(f"{asked.holding.name} loads, and gives logits that are not finite")
    lacking = missing(answer.needs)
    reader = f"quantkit's own reader loads it (transformers wants {', '.join(lacking)})" if lacking else "it loads as it stands"
    console.say(f"nothing was written: {reader}, and its logits on {logits.shape[0]} tokens are finite")
    return {"artifact": opened.source.path, "written": False, "tokens": logits.shape[0]}


def _repack(export: Export) -> dict[str, Any]:
    from quantkit.exporting.grids import read_grids, repack_model, require_equal

    model = export.load(dense_dtype(export.asked))
    layers = read_grids(export.source, model)
    options = export.asked.detection.record.recipe.options if export.asked.detection.record else {}
    return _save(
        export,
        model,
        change=lambda: repack_model(model, layers, export.asked.target, options),
        compare=lambda folder, again: {"equal_codes": require_equal(layers, read_grids(folder, again))},
    )


def _by_plugin(export: Export) -> dict[str, Any]:
    dtype, target = dense_dtype(export.asked), export.asked.target
    plan, model = export.plan(dtype), export.load(dtype)
    return _save(export, model, change=lambda: export.methods.export_model(plan, model, target))


def _save(
    export: Export,
    model: Any,
    *,
    change: Callable[[], Any],
    compare: Callable[[Path, Any], dict[str, Any]] = lambda _folder, _model: {},
) -> dict[str, Any]:
    """Save what `change` makes of the source in memory, once it is loaded again, gives the same logits and passes `compare`."""
    checked = dict[str, Any]()
    reference = probe_logits(model, rows := probe_rows(model))

    def verify(folder: Path) -> Mapping[str, Any]:
        again = export.load_written(folder)
        fidelity = checked_fidelity(export.answer, reference, probe_logits(again, rows))
        compared = compare(folder, again)
        checked.update(compared | {"max_logit_difference": fidelity.max_abs_logit_difference})
        return {"export": _said(export, fidelity) | compared}

    save_artifact(
        export.target,
        model=change(),
        tokenizer=load_tokenizer(export.opened.tokenizer, trust_remote_code=export.trust),
        record=export.record(),
        verify=verify,
        overwrite=export.asked.flags.overwrite,
    )
    return checked


def _dequantize(export: Export) -> dict[str, Any]:
    from quantkit.exporting.dequantize import write_dense

    dtype, checked = dense_dtype(export.asked), dict[str, Any]()
    with new_folder(export.target, overwrite=export.asked.flags.overwrite) as folder:
        counts = write_dense(export.source, folder, dtype=dtype, trust_remote_code=export.trust)
        model = export.load(dtype)
        reference = probe_logits(model, rows := probe_rows(model))
        del model
        gc.collect()

        def verify(written: Path) -> Mapping[str, Any]:
            fidelity = checked_fidelity(export.answer, reference, probe_logits(export.load_written(written), rows))
            checked.update(counts | {"max_logit_difference": fidelity.max_abs_logit_difference, "mean_kl": fidelity.mean_kl})
            return {"export": _said(export, fidelity) | counts}

        finish_written(folder, export.record(), verify=verify)
    return checked


def _convert(export: Export) -> dict[str, Any]:
    from quantkit.exporting.convert import LARGEST_LOGIT_GAP, convert, find_converter, load_gguf, require_equal_weights

    command = find_converter(export.asked.flags.converter)
    require_space(export.target.parent, 2 * size_of(export.source) + SPARE_BYTES)
    with new_folder(export.target, overwrite=export.asked.flags.overwrite) as folder:
        path = folder / f"{export.target.name}.gguf"
        convert(command, export.source, path, dtype=export.opened.source.spec.weights_dtype)
        model, again = export.load("float32"), load_gguf(path)
        weights = require_equal_weights(model, again)
        rows = probe_rows(model)
        fidelity = compare_logits(probe_logits(model, rows), probe_logits(again, rows))
        if fidelity.max_abs_logit_difference > LARGEST_LOGIT_GAP:
            raise VerificationError(f"the GGUF file holds the same weights and computes something else: {fidelity}")
        del model, again
        said = _said(export, fidelity) | {"equal_weights": weights, "converter": Path(command[-1]).name}
        record = finish_written(folder, export.record(export=said))
        write_text(folder / CARD, _gguf_card(record, path.name, fidelity))
    return {"equal_weights": weights, "max_logit_difference": fidelity.max_abs_logit_difference}


def _dequantized_by_transformers(source: Path, dtype: str) -> Any:
    """Return a model with FP8 blocks as transformers dequantizes it while loading: its FP8 products want a GPU."""
    import torch
    from transformers import AutoModelForCausalLM, FineGrainedFP8Config

    config = FineGrainedFP8Config(dequantize=True)
    with one_line(str(source), "model"):
        return AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), quantization_config=config).eval()


def _said(export: Export, fidelity: Fidelity) -> dict[str, Any]:
    """Return what the record keeps of the export."""
    source = export.opened.source.spec
    return {
        "outcome": export.answer.outcome,
        "step": export.answer.step,
        "from": f"{source.weights_dtype} ({source.format})",
        "compared_with_source": fidelity.to_dict(),
    }


def _open(asked: Asked, methods: Methods) -> Opened:
    trust = asked.flags.trust_remote_code
    return open_path(asked.detection.path, methods, registry=Registry(None), device="cpu", trust_remote_code=trust)


def _gguf_card(record: Mapping[str, Any], file: str, fidelity: Fidelity) -> str:
    from quantkit.card import front_matter

    parent = record["parents"][0]["name"] if record["parents"] else Path(record["base"]["name_or_path"]).name
    dtype = record["quantization"]["weights_dtype"]
    head = front_matter(record).replace("library_name: transformers", "library_name: llama.cpp")
    return (
        f"{head}\n\n# {record['name']}\n\n`{parent}` as a GGUF file, in {dtype}: the same weights, bit for bit;"
        f" read back by transformers and compared with it in float32 ({fidelity}).\n\n## How to load it\n\n"
        f"```bash\nllama-cli -m {file}\n```\n\nThe same facts, for programs: `quantization_metadata.json`.\n"
    )
