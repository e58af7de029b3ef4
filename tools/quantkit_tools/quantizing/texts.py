"""On which text is a job calibrated and judged, and what does its record say about where the source came from?"""

import json
import tempfile
from pathlib import Path
from typing import Any

from quantkit import console
from quantkit.calibrating import Texts, read_texts, read_training_texts, split_texts
from quantkit.data import prepare_data
from quantkit.errors import UsageError
from quantkit.layout import counted
from quantkit.methods import Methods
from quantkit_registry.fingerprints import fingerprint_base
from quantkit_registry.records import BaseReference, Parent
from quantkit_tools.quantizing.making import Making
from quantkit_tools.quantizing.planning import QuantizeJob

SFT = "sft"
KEPT_OF_DATA = ("dataset", "fingerprint", "system_prompt", "name_settings")
"""What a quantized model's record keeps of its source's training data; it is still asked with that system prompt."""


def texts_of(job: QuantizeJob, tokenizer: Any, methods: Methods) -> Texts:
    """Return calibration and held-out text, and print where they come from.

    Raises:
        UsageError: the method wants text and none is named, takes none and got some, or a source cannot be used.
    """
    from quantkit.skeleton import read_stop_tokens

    config, wants = job.config, methods.wants_calibration(job.plan)
    trained = _training_settings(job)
    if config.calib is not None and not wants:
        optional = methods.info(job.plan.method).calibration == "optional"
        said = " with these options (quantkit methods shows which use it)" if optional else ""
        raise UsageError(
            f"{job.plan.method} uses no calibration text{said}; leave out --calib (--gate-data names text to judge on)"
        )
    if config.calib == SFT and trained is None:
        raise UsageError(f"--calib {SFT}: {job.source.name} has no record of what it was trained on; name a file")
    calib = config.calib or (SFT if trained is not None and (wants or config.gate_data is None) else None)
    if wants and calib is None:
        raise UsageError(f"{job.plan.method} quantizes with calibration text; name some with --calib FILE")
    stops = read_stop_tokens(job.source.source.path, tokenizer)
    if calib == SFT and trained is not None:
        settings = trained if config.gate_data is None else trained | {"eval_dataset_name": config.gate_data}
        recorded = job.source.detection.record.data.get("fingerprint") if job.source.detection.record else None
        fingerprint = recorded if isinstance(recorded, str) else None
        texts = read_training_texts(settings, fingerprint, tokenizer, config, calibrates=wants)
    elif calib is not None:
        texts = read_texts(calib, tokenizer, config, calibrates=wants, gate_dataset=config.gate_data, stop_token_ids=stops)
    elif config.gate_data is not None:
        texts = read_texts(config.gate_data, tokenizer, config, calibrates=False, stop_token_ids=stops)
    else:
        texts = _generated_texts(job, tokenizer, stops)
    if texts.calibration is not None:
        found = texts.calibration
        left_out = f"; {counted(texts.overlap, 'document')} left out, being held out" if texts.overlap else ""
        console.say(f"calibration: {counted(len(found.rows), 'row')}, {found.tokens:,} tokens of {found.source}{left_out}")
    console.say(f"judged on: {texts.held_out.to_dict()['tokens']} tokens of {texts.held_out.source}")
    return texts


def making_of(job: QuantizeJob) -> Making:
    """Return what is to be made, with the source as parent where it has a name to refer to."""
    record = job.source.detection.record
    path = job.source.source.path
    if record is None:
        local = Path(job.config.src).expanduser().is_dir()
        base = BaseReference(
            name_or_path=str(Path(path).resolve()) if local else job.config.src,
            revision=None if local else Path(path).name,  # a snapshot's folder is called by its commit
            fingerprint=fingerprint_base(path),
        )
    else:
        base = record.base
    data = {key: record.data[key] for key in KEPT_OF_DATA if key in record.data} if record else {}
    return Making(
        source=job.source.source,
        plan=job.plan,
        dtype=job.dtype,
        name=job.name,
        target=job.target,
        device=job.device,
        limits=job.limits,
        base=base,
        identity=job.source.artifact,
        parents=() if record is None else (Parent(name=record.name, artifact=job.source.artifact),),
        adapter=None if record is None else record.adapter,
        data=data,
        ignore=job.config.ignore,
        overwrite=job.config.overwrite,
        trust_remote_code=job.config.trust_remote_code,
    )


def _generated_texts(job: QuantizeJob, tokenizer: Any, stops: tuple[int, ...]) -> Texts:
    """Return held-out text that needs no file: the generated arithmetic rows."""
    from quantkit.data.arithmetic import arithmetic_data

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arithmetic.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in arithmetic_data(train=400).train), encoding="utf-8")
        data = prepare_data(dataset=str(path), tokenizer=tokenizer, max_length=1 << 30, stop_token_ids=stops)
    return split_texts(data, job.config, source="generated arithmetic rows", calibrates=False)


def _training_settings(job: QuantizeJob) -> dict[str, Any] | None:
    record = job.source.detection.record
    settings = record.training.get("settings") if record is not None else None
    return dict(settings) if isinstance(settings, dict) and settings.get("dataset_name") else None
