"""Is it the same run that goes on, and if not, in what does it differ?

A checkpoint keeps the settings it was made with, fingerprints of rows, chat template and base, the kind of device and the
versions of the libraries that do the arithmetic. All of it is compared at once, and each difference is named as a field with
both values: before any weights are loaded, the base by a few values of each stored tensor, and again by those in memory.
Loading whatever fits, the usual way, gives a run whose first half was another's.
"""

import hashlib
import json
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError, did_you_mean
from quantkit.headers import read_tensor_index
from quantkit.skeleton import CONFIG, folder_here

if TYPE_CHECKING:
    from quantkit.config import RunConfig
    from quantkit.data import EncodedRow, PreparedData
    from quantkit.training.checkpoints import RunState

FREE_SETTINGS = frozenset(
    {"output_dir", "overwrite", "logging_steps", "save_steps", "save_total_limit", "resume_from_checkpoint", "report_to"}
    | {"accept_changes", "name_settings", "dataloader_num_workers", "sharding", "eval_dataset_name", "device"}
    | {"merge_after_train", "merge", "save_dtype", "lm_head_dtype", "device_map"}
    | {"recompute", "gradient_checkpointing", "activation_offloading", "preflight", "force"}
)
"""Settings a resumed run may change unasked: they have no effect on the steps, or, as recomputing, on their results."""
ROWS_OF_A_STEP = ("per_device_train_batch_size", "gradient_accumulation_steps")
"""Settings a resumed run may change as long as their product stays: each step then has the same rows."""
LENGTH = ("max_steps", "num_train_epochs")
"""Settings a resumed run may change where the course of the learning rate does not depend on them."""
ENDLESS = frozenset({"constant", "constant_with_warmup", "inverse_sqrt"})
"""Courses of the learning rate that do not depend on the number of steps."""
BOUND = frozenset({"peft_config", "lora_r", "target_modules", "modules_to_save", "optim", "processes"})
"""What a checkpoint's tensors belong to; a run in which it differs cannot go on from there at all."""
LIBRARIES = ("quantkit", "torch", "transformers", "peft", "accelerate", "bitsandbytes")
"""Distributions whose versions decide a step's results to the last bit."""
Change = tuple[Any, Any]
"""What a field was, and what it is."""
SAMPLES = 64
"""Values of each frozen tensor that the base's fingerprint is taken over; bytes of each stored one."""
ALSO = {"stored_base": "base"}
"""Facts that say in another way what another fact says, under whose name they differ."""


def describe_run(
    data: "PreparedData", config: "RunConfig", *, tokenizer: Any, device: str, processes: int = 1
) -> dict[str, Any]:
    """Return what makes a run this run and no other, as plain JSON data: `settings`, `facts` and `versions`.

    No model is needed; `base`, the fact that is known of one in memory only, is `frozen_sha256`.
    """
    import torch

    from quantkit.environment import describe_environment

    template = json.dumps(getattr(tokenizer, "chat_template", None), sort_keys=True)
    environment = describe_environment("cpu")
    stored = stored_sha256(config.model_name_or_path, config.revision)
    return {
        "settings": {key: value for key, value in config.to_dict().items() if key not in FREE_SETTINGS},
        "facts": {
            "data": data.fingerprint,
            "chat_template": hashlib.sha256(template.encode()).hexdigest(),
            **({"stored_base": stored} if stored else {}),
            "device_type": torch.device(device).type,
            "processes": processes,
            **({"sharding": config.sharding} if config.peft_config == "NoPeft" else {}),  # parts of gradients sum up otherwise
        },
        "versions": {name: str(environment[name]) for name in LIBRARIES if name in environment},
    }


def stored_sha256(path: str, revision: str | None = None) -> str | None:
    """Return one hash over a base's configuration, names, types and shapes of its stored tensors, and bytes of each.

    None where no safetensors files of it are on this machine yet; loading says what there is instead.
    """
    folder = folder_here(path, revision)
    digest = hashlib.sha256()
    try:
        if folder is None:
            return None
        digest.update((folder / CONFIG).read_bytes())
        index = read_tensor_index(folder)
        with ExitStack() as opened:
            files = {file: opened.enter_context(file.open("rb")) for file in index.files}
            for name, tensor in sorted(index.tensors.items()):
                stream = files[tensor.file]
                stream.seek(tensor.start + max(tensor.size_bytes - SAMPLES, 0) // 2)
                digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
                digest.update(stream.read(min(SAMPLES, tensor.size_bytes)))
    except (OSError, UsageError):
        return None
    return digest.hexdigest()


def frozen_sha256(model: Any) -> str:
    """Return one hash over names, types and shapes of all tensors that are not trained, and `SAMPLES` values of each.

    A hash of every byte would take as long as loading the model; a base that was retrained or quantized otherwise differs in
    nearly all values.
    """
    import torch

    from quantkit.storable import tensors_to_store

    trained = {name for name, item in model.named_parameters() if item.requires_grad}
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors_to_store(model, is_adapter=False).items()):
        if name in trained or not torch.is_tensor(tensor) or tensor.is_meta:
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(flat.numel() // SAMPLES, 1)].contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(sample.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def rows_sha256(rows: Sequence["EncodedRow"]) -> str:
    """Return one hash over the token ids and labels of rows."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(array("q", row.input_ids).tobytes() + array("q", row.labels).tobytes())
    return digest.hexdigest()


def check_same_run(
    state: "RunState", run: Mapping[str, Any], *, where: Path, total_steps: int, accepted: tuple[str, ...] = ()
) -> dict[str, Change]:
    """Check that this run goes on where the checkpoint's stopped; return the differences that were `accepted`.

    Raises:
        UsageError: names each field that differs and was not accepted, with both values.
    """
    for name in accepted:
        if name in BOUND:
            raise UsageError(f"accept_changes has {name!r}; the checkpoint's tensors belong to it, so start a new run")
    found = differences(state, run, total_steps=total_steps)
    if bound := {name: change for name, change in found.items() if name in BOUND}:
        raise UsageError(f"{where}: made by another run: {in_words(bound)}. Use the same, or start a new run")
    if left := {name: change for name, change in found.items() if name not in accepted}:
        raise UsageError(
            f"{where}: made by another run: {in_words(left)}. Use the same, start a new run, or go on all the same with"
            f" accept_changes={','.join([*accepted, *left])}"
        )
    known = {*found, *state.settings, *run["settings"], *state.facts, *run["facts"], *run["versions"]} - {*ALSO}
    for name in accepted:
        if name not in known:
            raise UsageError(f"accept_changes has {name!r}, which a checkpoint does not keep.{did_you_mean(name, known)}")
    return {name: found[name] for name in accepted if name in found}


def differences(state: "RunState", run: Mapping[str, Any], *, total_steps: int) -> dict[str, Change]:
    """Return field → what it was and what it is, for all in which a run differs from a checkpoint's."""
    was, now = _flat(state.settings), _flat(run["settings"])
    same_rows = prod(now[key] for key in ROWS_OF_A_STEP) == prod(was.get(key, 0) for key in ROWS_OF_A_STEP)
    same_course = state.total_steps == total_steps or (now["lr_scheduler_type"] in ENDLESS and not 0 < now["warmup_steps"] < 1)
    leave = (ROWS_OF_A_STEP if same_rows else ()) + (LENGTH if same_course else ())
    options = {*state.settings.get("method_options", {}), *run["settings"]["method_options"]}
    found = {
        key: (was.get(key), now.get(key))
        for key in sorted({*was, *now})
        if key not in leave and was.get(key) != now.get(key) and (key in options or (key in was and key in now))
    }
    for before, after in ((state.facts, run["facts"]), (state.versions, run["versions"])):
        changed = {name: (before[name], value) for name, value in after.items() if name in before and before[name] != value}
        found |= {ALSO.get(name, name): change for name, change in changed.items()}
    return found


def in_words(changes: Mapping[str, Change]) -> str:
    """Return differences as a user should read them; of a fingerprint, the first twelve digits."""
    return "; ".join(f"{name} was {_shown(was)} and is {_shown(now)}" for name, (was, now) in changes.items())


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings.get("method_options", {}), **{key: value for key, value in settings.items() if key != "method_options"}}


def _shown(value: Any) -> str:
    hashed = isinstance(value, str) and len(value) == hashlib.sha256().digest_size * 2
    return value[:12] if hashed else repr(value)
