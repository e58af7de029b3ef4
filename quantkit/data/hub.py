"""How are rows fetched from the Hugging Face hub? By `datasets`; with a `limit`, only as much as is needed is downloaded.

Where the hub's name cannot be resolved, the libraries are told so first: they would retry for half a minute before they
look into their cache, or give up.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies

from quantkit.errors import UsageError


def hub_rows(hub_id: str, subset: str | None, split: str, limit: int | None) -> list[dict[str, Any]]:
    """Return the first `limit` rows (None: all) of a split.

    Raises:
        UsageError: it cannot be loaded; one line with the library's reason.
    """
    try:
        with _offline_if_unreachable():
            from datasets import load_dataset

            loaded = load_dataset(hub_id, subset, split=split, streaming=limit is not None)
            return [dict(row) for row in (loaded if limit is None else loaded.take(limit))]
    except Exception as error:  # `datasets` raises nearly every type there is
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise UsageError(
            f"data set {hub_id}{f':{subset}' if subset else ''}@{split} cannot be loaded from the hub"
            f" ({type(error).__name__}: {reason}); without a network, give local files: /path/rows.parquet,"
            " or NAME:/path/rows.parquet for a built-in name"
        ) from None


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    import datasets.config
    from huggingface_hub import constants

    if _reachable(constants.ENDPOINT):
        yield
        return
    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


def _reachable(endpoint: str) -> bool:
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlparse(endpoint).hostname, None)
    except OSError:
        return False
    return True
