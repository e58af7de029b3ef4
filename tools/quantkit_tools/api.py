"""How is quantkit used from Python, a notebook for instance? By the verbs themselves: `from quantkit_tools import api`.

Each function here is a verb called with values instead of words: the same checks, steps, records and results, and errors that
are exceptions (`quantkit.UsageError`, `quantkit.VerificationError`, `quantkit.QuantkitError`). A set of classes beside the
verbs, the alternative, would have to be kept equal to them. Importing this imports no torch; the functions do.
"""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from quantkit.config import RunConfig
from quantkit.errors import UsageError

if TYPE_CHECKING:
    from quantkit_registry.detect import Detection
    from quantkit_registry.records import ArtifactRecord

StrPath = str | PathLike[str]


class Trained(NamedTuple):
    """What a run wrote."""

    path: Path
    record: "ArtifactRecord"
    """What the weights are, how they got so, what was measured; `verification["gate"]` says whether a merge is marked."""


class Loaded(NamedTuple):
    """A model in eval mode, and its tokenizer."""

    model: Any
    tokenizer: Any


def train(config: RunConfig | None = None, /, **settings: Any) -> Trained:
    """Fine-tune, merge and save as `quantkit train` does; settings go by any name that a run file may use.

    >>> train(RunConfig(model_name_or_path="base"), lora_r=8)
    Traceback (most recent call last):
    quantkit.errors.UsageError: settings stand in a RunConfig and beside it (lora_r); use config.with_changes(lora_r=...)

    Raises:
        QuantkitError: what is wrong with settings, data, model or result; nothing half-written is left.
        KeyboardInterrupt: the run was interrupted; its checkpoint is kept, for `resume_from_checkpoint=True`.
    """
    from quantkit.processes import INTERRUPTED
    from quantkit_registry.records import read_record
    from quantkit_tools.train import carry_out

    if config is not None and settings:
        names = ", ".join(settings)
        changes = ", ".join(f"{name}=..." for name in settings)
        raise UsageError(f"settings stand in a RunConfig and beside it ({names}); use config.with_changes({changes})")
    code, target = carry_out(config or RunConfig.from_mapping(settings))
    if code == INTERRUPTED:
        raise KeyboardInterrupt("a checkpoint was kept; resume_from_checkpoint=True goes on from it")
    return Trained(target, read_record(target))


def load(
    path: StrPath,
    *,
    device: str = "auto",
    dtype: str = "auto",
    method: str | None = None,
    base: StrPath | None = None,
    registry: StrPath | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Open a folder, a name in the registry or a hub id as `quantkit evaluate` does, whose flags these are.

    It is detected, loaded as that (an adapter on the base it was trained on), measured, and computes in what the device is fast
    in or `dtype` names (`quantkit.computing`).

    Raises:
        UsageError: nothing that can be loaded is there, or how its base was quantized is recorded nowhere and `method` is None.
        VerificationError: files, metadata and tensors disagree, or the base is another than in training.
    """
    from quantkit.modeling import load_tokenizer
    from quantkit_tools.evaluation.computing import load_opened
    from quantkit_tools.evaluation.flags import Flags
    from quantkit_tools.evaluation.scoring import open_named

    flags = Flags(
        paths=(str(path),),
        device=device,
        dtype=dtype,
        method=method,
        base=_text(base),
        registry=_text(registry),
        trust_remote_code=trust_remote_code,
    )
    opened = open_named(flags, str(path))
    tokenizer = load_tokenizer(opened.tokenizer, trust_remote_code=trust_remote_code)
    return Loaded(load_opened(flags, opened), tokenizer)


def evaluate(
    paths: StrPath | Iterable[StrPath], data: StrPath | Iterable[StrPath] | None = None, **flags: Any
) -> dict[str, Any]:
    """Detect, load and score as `quantkit evaluate` does, whose other flags are keywords; return the object of its `--json`.

    It runs in a process of its own, so that peak memory is that of the evaluated model, whatever this one holds; results are
    filed as ever. Of several paths one that fails stands under `failed`.

    Raises:
        QuantkitError: nothing was evaluated; the text says why.
    """
    from quantkit_tools.verb_process import answer_of, error_of, words_of

    rows = {"data": ",".join(_texts(data)) if data is not None else None}
    found = answer_of(["evaluate", *_texts(paths), *words_of(rows | flags)])
    failed = found.get("failed", [])  # a dry run has none
    if failed and not found["artifacts"]:
        raise error_of(failed[0]["exit_code"], "; ".join(f"{item['path']}: {item['error']}" for item in failed))
    return found


def detect(path: StrPath, *, method: str | None = None, registry: StrPath | None = None) -> "Detection":
    """Say what a folder, weight file, name in the registry or hub id holds and on whose word, as `quantkit registry detect`.

    Raises:
        UsageError: nothing that can be loaded is there, or a file is damaged.
        VerificationError: witnesses disagree; the text names both.
    """
    from quantkit.methods import installed_methods
    from quantkit_registry.store import Registry
    from quantkit_tools.registry import detect_named

    return detect_named(Registry(_text(registry)), str(path), installed_methods(), method=method)


def _text(path: StrPath | None) -> str | None:
    return None if path is None else str(path)


def _texts(given: StrPath | Iterable[StrPath]) -> list[str]:
    return [str(given)] if isinstance(given, str | PathLike) else [str(item) for item in given]
