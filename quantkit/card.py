"""What does README.md tell someone who finds the artifact without knowing quantkit?

What the weights are, how they came to be, how to load them with plain transformers and PEFT, and what was measured. It
is rendered from the artifact's record, so it can say nothing that the record does not. A template with blanks to fill
in, as PEFT writes one, is mostly left blank. Local paths are cut to their last part; hub ids stand in the YAML head.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from quantkit.card_load import loading_section
from quantkit.exporting.wording import exported_summary
from quantkit.layout import format_bytes, format_duration
from quantkit.plan import AdapterPlan, Stage
from quantkit.spec import DENSE_BITS, QuantizationSpec

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[\w.-]{1,96}|[A-Za-z0-9][\w.-]{0,95}")
HUB_DATA = re.compile(r"(?P<id>[A-Za-z0-9][\w.-]*/[\w.-]+)(?::[\w.-]+)?@\w+")
SETTINGS = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "per_device_train_batch_size",
    "gradient_accumulation_steps", "max_length", "weight_decay", "max_grad_norm", "optim", "gradient_checkpointing", "seed",
)  # fmt: skip
"""Settings of the run that the card lists, as `RunConfig` names them."""
OUTCOME = (
    "steps", "total_steps", "final_loss", "evaluation_loss_before", "evaluation_loss_after", "evaluation_rows", "tokens",
    "response_tokens", "trainable_parameters", "tokens_per_s", "duration_s", "arithmetic_dtype", "resumed_from",
)  # fmt: skip
"""Numbers of the training loop that the card lists, as `TrainingResult` names them."""


def render_card(record: Mapping[str, Any]) -> str:
    """Return the text of README.md for an artifact's record."""
    sections = [
        front_matter(record),
        f"# {record['name']}",
        summary(record),
        "## What the weights are\n\n" + weights_table(record),
        "## How to load them\n\n"
        + loading_section(record, ("" if is_hub_id(record["base"]) else "path/to/") + base_shown(record)),
    ]
    training = _training(record)
    if training:
        sections.append("## How they were trained\n\n" + _table("", "", _adapter_rows(record) + training))
    if record.get("data"):
        sections.append("## Data\n\n" + _table("", "", _data_rows(_data(record))))
    if (record.get("memory") or {}).get("stages"):
        sections.append("## Memory, measured\n\n" + _memory_table(record["memory"]["stages"]))
    if record.get("verification"):
        checked = [(name, _without_path(name, value)) for name, value in _flat(record["verification"])]
        sections.append("## Checked before saving\n\n" + _table("check", "result", checked))
    if said := caveats(record):
        sections.append("## Limits\n\n" + "\n".join(f"- {line}" for line in said))
    versions = ", ".join(f"{key} {value}" for key, value in _flat(record.get("environment") or {}))
    sections.append(
        f"Written by quantkit {record['quantkit_version']} on {record['created_at']}" + (f"; {versions}." if versions else ".")
        + " The same facts, for programs: `quantization_metadata.json`."
    )  # fmt: skip
    return "\n\n".join(sections) + "\n"


def front_matter(record: Mapping[str, Any]) -> str:
    """Return the YAML head; `base_model` and `datasets` only where they are hub ids."""
    import yaml

    adapter, spec = record.get("adapter"), record["recipe"]["spec"]
    tags = ["quantkit", record["recipe"]["method"].lower()]
    tags += [adapter["kind"].lower()] if adapter and adapter["kind"] != "NoPeft" else []
    tags += [f"{spec['weights_bits']}-bit"] if QuantizationSpec.from_dict(record["quantization"]).is_quantized else []
    data: dict[str, Any] = {"library_name": "peft" if record["kind"] == "adapter" else "transformers"}
    if is_hub_id(record["base"]):
        data["base_model"] = record["base"]["name_or_path"]
        if relation := base_model_relation(record):
            data["base_model_relation"] = relation
    data |= {"pipeline_tag": "text-generation", "tags": list(dict.fromkeys(tags))}
    matches = [HUB_DATA.fullmatch(source) for source in _sources(_data(record))]
    if ids := [match["id"] for match in matches if match]:
        data["datasets"] = list(dict.fromkeys(ids))
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def base_model_relation(record: Mapping[str, Any]) -> str | None:
    """Return `adapter`, `quantized`, `finetune`, or None for a snapshot, which is the base itself."""
    if record["kind"] == "adapter":
        return "adapter"
    quantized = record["quantization"]["weights_dtype"] not in DENSE_BITS
    if quantized and (record["recipe"]["stage"] == Stage.TRAINED or not record.get("training")):
        return "quantized"
    return "finetune" if record.get("training") else None


def is_hub_id(base: Mapping[str, Any]) -> bool:
    """Whether a base came from the hub: its name has the form of an id, and no folder of that name lies here."""
    name = str(base["name_or_path"])
    return bool(HUB_ID.fullmatch(name)) and (base.get("revision") is not None or not Path(name).exists())


def base_shown(record: Mapping[str, Any]) -> str:
    """Return how the card names the base: its hub id, or the last part of its path."""
    base = record["base"]
    return str(base["name_or_path"] if is_hub_id(base) else PurePath(base["name_or_path"]).name)


def summary(record: Mapping[str, Any]) -> str:
    """Return what the artifact is, in two or three sentences."""
    recipe, merge, base = record["recipe"], record.get("merge"), f"`{base_shown(record)}`"
    spec, stored = (QuantizationSpec.from_dict(item) for item in (recipe["spec"], record["quantization"]))
    trained_on = (
        f"on its weights in {describe(spec)} (method {recipe['method']})" if spec.is_quantized else "on its dense weights"
    )
    label = AdapterPlan.from_dict(record["adapter"]).label if record.get("adapter") else "NoPeft"
    if export := (record.get("verification") or {}).get("export"):
        source = record["parents"][0]["name"] if record.get("parents") else base_shown(record)
        text = exported_summary(export, source=source, stored=describe(stored), layout=stored.format)
    elif record["kind"] == "adapter":
        text = f"A {label} adapter for {base}, trained {trained_on}. It is meant for exactly that base, quantized in that way."
    elif recipe["stage"] == Stage.TRAINED and record.get("parents"):
        text = f"`{record['parents'][0]['name']}`, quantized to {describe(stored)} (method {recipe['method']})."
    elif merge:
        text = f"{base}, fine-tuned with a {label} adapter {trained_on}; the adapter is folded in."
        if merge["policy"] == "base":
            text += (
                f" **It was folded into the original weights, not into those it was trained on**: the stored weights are"
                f" {describe(stored)} and predict something else than adapter and quantized base did; how far, is said below."
            )
        elif merge["policy"] == "requantized":
            text += f" The result was quantized again, rounded with data, and is stored as {describe(stored)}."
        elif spec.is_quantized and not stored.is_quantized:
            bits = f"{spec.weights_bits} bit"
            text += (
                f" **The stored weights are {describe(stored)}, not {bits}**: {bits} is how the base was held while training."
                " It was dequantized to fold the adapter in, so that the update is not rounded away."
            )
    elif record.get("training"):
        text = f"{base}, all weights fine-tuned, stored as {describe(stored)}."
    elif stored.is_quantized:
        text = f"{base}, quantized to {describe(stored)} (method {recipe['method']}); not trained."
    else:
        text = f"A snapshot of {base}, not trained, stored as {describe(stored)}."
    return text


def describe(spec: QuantizationSpec) -> str:
    """Return the weights in a few words.

    >>> describe(QuantizationSpec(method="QLORA", weights_bits=4, weights_dtype="nf4", double_quant=True))
    '4-bit nf4 with double quantization'
    """
    if not spec.is_quantized:
        return spec.weights_dtype
    parts = [f"{spec.weights_bits}-bit {spec.weights_dtype}"]
    parts += {None: [], -1: ["one scale per row"]}.get(spec.group_size, [f"groups of {spec.group_size}"])
    parts += ["double quantization"] if spec.double_quant else []
    parts += [f"{spec.activations_bits}-bit activations"] if spec.activations_bits else []
    return " with ".join([parts[0], " and ".join(parts[1:])]) if parts[1:] else parts[0]


def weights_table(record: Mapping[str, Any]) -> str:
    """Return the spec of the stored weights (an adapter's: of its base) as a table."""
    names = {name: value for name, value in record["quantization"].items() if value not in (None, [], {}, False)}
    if record["kind"] == "adapter":
        return "The folder holds the adapter only. The base that it is loaded on must be:\n\n" + _table(
            "", "base", names.items()
        )
    return _table("", "stored weights", names.items())


def caveats(record: Mapping[str, Any]) -> list[str]:
    """Return what a user of the artifact should know and might not expect."""
    said = [str(note) for note in record["recipe"].get("notes", ())]
    gate = (record.get("verification") or {}).get("gate") or {}
    if gate.get("outcome") == "failed":
        said.append(f"**Marked**: {'; '.join(map(str, gate.get('reasons', ())))}.")
    data, base = _data(record), record["base"]
    spec = QuantizationSpec.from_dict(record["recipe"]["spec"])
    if record.get("merge") and spec.activations_bits:
        said.append("The base also quantized activations while training; dense weights cannot repeat that and only come close.")
    if record["kind"] == "adapter" and spec.is_quantized:
        said.append("On the unquantized base the adapter computes something else than what was trained and measured.")
    held = spec if record["kind"] == "adapter" else QuantizationSpec.from_dict(record["quantization"])
    if held.format == "bitsandbytes" and held.weights_bits == 4:
        said.append(
            "On CPUs with AVX512-BF16, bitsandbytes repacks 4-bit weights for inference and rounds their scales to bfloat16:"
            " logits come out slightly different there."
        )
    mark = f" Its files have the fingerprint `{base['fingerprint']}`." if base.get("fingerprint") else ""
    if not is_hub_id(base):
        said.append(f"The base was read from a local folder, so its name alone does not identify it.{mark}")
    elif base.get("revision") is None:
        said.append(f"The commit of the base was not recorded; the hub's main branch may have moved on.{mark}")
    if data.get("truncated"):
        said.append(f"{data['truncated']} training rows were cut to the longest length and lost the end of their response.")
    if data.get("overlap"):
        said.append(f"{data['overlap']} evaluation questions also stand in the training set; scores on them say little.")
    if _merged_training(record).get("interrupted"):
        said.append("Training was interrupted before its last step.")
    if changes := _merged_training(record).get("accepted_changes"):
        parts = ", ".join(f"{change['field']} (from step {change['from_step']} on)" for change in changes)
        said.append(f"Training went on after an interruption with differences that were accepted: {parts}.")
    if record.get("training"):
        said.append("No quality is claimed beyond the numbers above; the licence and limits of the base and the data apply.")
    return said


def _merged_training(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings and outcome of the training as one mapping, whether the record nests them or not."""
    flat: dict[str, Any] = {}
    for key, value in (record.get("training") or {}).items():
        flat |= value if isinstance(value, Mapping) else {key: value}
    return flat


def _training(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    found = _merged_training(record)
    rows = [(name, found[name]) for name in (*SETTINGS, *OUTCOME) if found.get(name) is not None]
    return [row for row in rows if row not in (("max_steps", -1), ("weight_decay", 0.0), ("warmup_steps", 0.0))]


def _adapter_rows(record: Mapping[str, Any]) -> list[tuple[str, Any]]:
    adapter = record.get("adapter")
    if not adapter or adapter["kind"] == "NoPeft":
        return [("trained", "all weights")]
    names = ("r", "lora_dropout", "target_modules") if adapter["kind"] == "VeRa" else tuple(adapter)[1:]
    return [("adapter", adapter["kind"])] + [(name, adapter[name]) for name in names if adapter[name] not in ([], False, 0.0)]


def _data(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data report as one mapping, whether the record nests it under `report` or not."""
    data = dict(record.get("data") or {})
    report = data.pop("report", None) or {}
    return {**data, **report}


def _sources(data: Mapping[str, Any]) -> list[str]:
    held_out = data.get("evaluation") or {}
    return [str(part["source"]) for part in (data, held_out) if part.get("source")]


def _data_rows(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in data.items():
        if isinstance(value, Mapping):
            inner = value if name == "evaluation" else {f"{name} {key}": item for key, item in value.items()}
            rows += _data_rows(inner, prefix="evaluation " if name == "evaluation" else prefix)
        elif value not in (None, [], "", 0):
            shown = value if name != "source" or HUB_DATA.fullmatch(str(value)) else PurePath(str(value)).name
            rows.append((prefix + name, shown))
    return rows


def _memory_table(stages: Iterable[Mapping[str, Any]]) -> str:
    stages = list(stages)
    devices = sorted({name for stage in stages for name in stage["peak_allocated_bytes"]})
    heads = ["stage", "time", *(f"{name} {kind}" for name in devices for kind in ("allocated", "reserved")), "process resident"]
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for stage in stages:
        peaks = [stage[f"peak_{kind}_bytes"].get(name) for name in devices for kind in ("allocated", "reserved")]
        cells = [stage["stage"], format_duration(stage["duration_s"])]
        cells += ["–" if peak is None else format_bytes(peak) for peak in [*peaks, stage["peak_rss_bytes"]]]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "Peaks per stage. “Process resident” counts the process with all its libraries.\n\n" + "\n".join(lines)


def _flat(data: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in data.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return [(name, value) for name, value in rows if value not in (None, [], {})]


def _table(left: str, right: str, rows: Iterable[tuple[str, Any]]) -> str:
    body = [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *body])


def _without_path(name: str, value: Any) -> Any:
    """Return what a check says, without the folders of a file that it names."""
    return re.sub(r"(?<![\w.])/(?:[^/\s]+/)+", "", value) if name.endswith("source") and isinstance(value, str) else value


def _cell(value: Any) -> str:
    """Return one table cell: lists with commas, long floats short, nothing that could break the table or run as HTML."""
    if isinstance(value, (list, tuple)):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "yes" if value is True else "no" if value is False else f"{value:,}" if isinstance(value, int) else str(value)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
