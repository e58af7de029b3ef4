"""How is an exported model called, and what does its record say?

As what it was made from, with a tag `export…` among the tags: a copy in another layout must not take the name of the original.
Everything else in the record stays true: the recipe is the original's, what the weights are is said anew, the original is the
parent.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from quantkit.environment import describe_environment
from quantkit.errors import UsageError
from quantkit.plan import AdapterPlan, QuantizationPlan, Stage
from quantkit.spec import DENSE_BITS, QuantizationSpec
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.names import ArtifactName, format_name, parse_name
from quantkit_registry.records import ArtifactRecord, BaseReference, Parent
from quantkit_registry.store import default_root
from quantkit_registry.verify import named_settings
from quantkit_tools.exporting.asked import Asked

TAGGED = {"dense": "dense", "gguf": "gguf", "awq": "awq", "gptq": "gptq", "compressed-tensors": "ct"}
"""Target to the value of the setting `export` that the name carries."""
FOREIGN_NOTE = "The weights were made elsewhere; by which options is not recorded."


def dense_dtype(asked: Asked) -> str:
    """Return the data type of dense weights that are written.

    Raises:
        UsageError: it could not be told from the files and was not named.
    """
    if asked.flags.dtype != "auto":
        return asked.flags.dtype
    stored, config = asked.holding.stored, asked.holding.config
    stated = config.get("dtype") or config.get("torch_dtype")  # what loaders cast the head to, where its type is another
    found = stated if stated in DENSE_BITS else getattr(stored, "lm_head_dtype", None)
    if found not in DENSE_BITS:
        raise UsageError(f"{asked.holding.name}: in which data type its dense weights are could not be told; say --dtype")
    return str(found)


def new_spec(asked: Asked) -> QuantizationSpec:
    """Return what the written weights are."""
    spec = source_spec(asked)
    if asked.target == "dense":
        dtype = dense_dtype(asked)
        return QuantizationSpec.dense(dtype, method=spec.method)
    if asked.target == "gguf":
        return spec.with_changes(format="gguf")
    symmetric = False if asked.target == "awq" else spec.symmetric
    return spec.with_changes(format=asked.target, symmetric=symmetric, lm_head_dtype=dense_dtype(asked))


def source_spec(asked: Asked) -> QuantizationSpec:
    """Return what the source's weights are.

    Raises:
        UsageError: bits and type could not be told.
    """
    if asked.detection.spec is None:
        raise UsageError(f"{asked.holding.name}: what its weights are could not be told, so no true record can be written")
    return asked.detection.spec


def planned_name(asked: Asked) -> tuple[str, Path]:
    """Return name and folder of what would be written."""
    record, spec = asked.detection.record, source_spec(asked)
    export = {"export": TAGGED[asked.target]}
    if record is not None:
        said = parse_name(record.name)
        named = dict(named_settings(record)) | export
        name = replace(
            said.quantized(record.recipe.spec, named), merged_dtype=said.merged_dtype, merge_policy=said.merge_policy
        )
    else:
        adapter = AdapterPlan(kind="NoPeft")
        name = ArtifactName.of(base=asked.detection.path, dataset=None, adapter=adapter, recipe=spec, named=export)
    recipe = spec if record is None else record.recipe.spec
    if asked.target == "dense" and recipe.is_quantized:
        name = replace(name, merged_dtype=dense_dtype(asked), merge_policy=None)
    root = default_root() if asked.flags.dst is None else Path(asked.flags.dst).expanduser()
    text = format_name(name)
    return text, root if root.name == text else root / text


def new_record(asked: Asked, *, artifact: str | None, verification: dict[str, Any]) -> dict[str, Any]:
    """Return the record of what is written; `artifact` is the hash of the source's content."""
    record, spec, name = asked.detection.record, source_spec(asked), planned_name(asked)[0]
    said: dict[str, Any] = {
        "verification": verification,
        "environment": describe_environment("cpu"),
        "quantization": new_spec(asked),
    }
    export = {"name_settings": {"export": TAGGED[asked.target]}}
    if record is None:
        path = asked.detection.path
        new = ArtifactRecord(
            name=name,
            kind="model",
            recipe=_foreign_recipe(spec),
            base=BaseReference(name_or_path=path, fingerprint=fingerprint_base(path)),
            data=export,
            **said,
        )
        return new.to_dict()
    parent = Parent(name=record.name, artifact=artifact)
    if "gate" in record.verification:  # a model that was marked stays marked in whatever layout
        said["verification"] = {"gate": record.verification["gate"]} | verification
    data = dict(record.data) | {"name_settings": {**named_settings(record), **export["name_settings"]}}
    fresh = ArtifactRecord(
        name=name,
        kind="model",
        recipe=record.recipe,
        base=record.base,
        adapter=record.adapter,
        merge=record.merge,
        parents=(parent,),
        training=record.training,
        data=data,
        **said,
    )
    return fresh.to_dict()


def _foreign_recipe(spec: QuantizationSpec) -> QuantizationPlan:
    compute = spec.lm_head_dtype if spec.lm_head_dtype in DENSE_BITS else "bfloat16"
    notes = (FOREIGN_NOTE,) if spec.is_quantized else ()
    return QuantizationPlan(
        method=spec.method,
        stage=Stage.TRAINED if spec.is_quantized else Stage.BASE,
        spec=spec,
        adapter=AdapterPlan(kind="NoPeft"),
        compute_dtype=compute,
        notes=notes,
    )
