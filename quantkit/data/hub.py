"""How are rows fetched from the Hugging Face hub? By `datasets`; with a `limit`, only as much as is needed is downloaded.

Where the hub cannot be asked (`quantkit.hub`), a data set that is not in the cache is refused before `datasets` is imported:
it would retry for half a minute before it gives up.
"""

from typing import Any

from quantkit.errors import UsageError
from quantkit.hub import reach_hub, require_on_hub

LOCALLY = "give local files: /path/rows.parquet, or NAME:/path/rows.parquet for a built-in name"


def hub_rows(hub_id: str, subset: str | None, split: str, limit: int | None) -> list[dict[str, Any]]:
    """Return the first `limit` rows (None: all) of a split.

    Raises:
        UsageError: it cannot be loaded; one line with the library's reason.
    """
    require_on_hub(hub_id, what="data set", instead=LOCALLY)
    try:
        from datasets import load_dataset

        reach_hub()
        loaded = load_dataset(hub_id, subset, split=split, streaming=limit is not None)
        return [dict(row) for row in (loaded if limit is None else loaded.take(limit))]
    except Exception as error:  # `datasets` raises nearly every type there is
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise UsageError(
            f"data set {hub_id}{f':{subset}' if subset else ''}@{split} cannot be loaded from the hub"
            f" ({type(error).__name__}: {reason}); without a network, {LOCALLY}"
        ) from None
