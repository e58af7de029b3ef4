"""How is a hub id described without loading the model? By its small files, fetched through `huggingface_hub`.

Only JSON is fetched here; weights are looked at when they lie in the local cache already.
"""

import re
from pathlib import Path

from quantkit.errors import UsageError
from quantkit.hub import fetch

SMALL_FILES = (
    "config.json",
    "adapter_config.json",
    "quantization_metadata.json",
    "training_metadata.json",
    "quantize_config.json",
    "quant_config.json",
)
HUB_ID = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,95}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def is_hub_id(text: str) -> bool:
    """Whether a text can be a hub id: `name` or `owner/name`, and no path.

    >>> is_hub_id("Qwen/Qwen3-0.6B"), is_hub_id("../x"), is_hub_id("a/b/c")
    (True, False, False)
    """
    return bool(HUB_ID.fullmatch(text)) and ".." not in text and "--" not in text


def describe_hub_id(repo_id: str, revision: str | None = None) -> Path:
    """Fetch the small files of a hub id and return the snapshot's folder; its name is the commit.

    Raises:
        UsageError: no such id, no network and not in the cache, or no access; one line.
    """
    _require_hub_id(repo_id)
    return fetch(repo_id, patterns=list(SMALL_FILES), revision=revision)


def cached_folder(repo_id: str, revision: str | None = None) -> Path:
    """Return the snapshot's folder of a hub id that lies in the local cache; nothing is fetched.

    Raises:
        UsageError: it is not there.
    """
    _require_hub_id(repo_id)
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repo_id, revision=revision, local_files_only=True))
    except Exception as error:  # the hub client raises its own and the system's errors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        raise UsageError(f"{repo_id}: no such folder here, and not in the hub's cache ({reason})") from None


def _require_hub_id(text: str) -> None:
    if not is_hub_id(text):
        raise UsageError(f"{text}: no such file or folder, and no hub id (owner/name) either")
