"""Is a model or data set that is no folder here to be had: from the hub's cache on this machine, or from the hub?

The hub is asked once per process, by one short request, before any library is let at it. Where nothing answers, libraries
are told to use their cache, and a name that is not in there is one line that says where it was looked for. Left alone, they
repeat each request for half a minute before they look into the cache, or give up.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread

from quantkit.errors import QuantkitError, UsageError, did_you_mean
from quantkit.headers import check_folder

PATIENCE_S = 4
"""Seconds that the hub has to answer; HF_HUB_ETAG_TIMEOUT sets another number."""
KINDS = {"model": "models", "data set": "datasets"}
"""What is looked for to what its folders in the cache begin with."""

_found: list[str] = []
"""What `reach_hub` found in this process."""


def reach_hub() -> str:
    """Return why the hub cannot be asked; empty where it can. Where it cannot, libraries use their caches from here on."""
    from huggingface_hub import constants

    if not _found:
        _found.append("HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _silence_of(constants.ENDPOINT))
    if _found[0]:
        constants.HF_HUB_OFFLINE = True
        if (config := sys.modules.get("datasets.config")) is not None:
            config.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    return _found[0]


def require_on_hub(name: str, *, what: str = "model", near: Iterable[str] = (), instead: str = "give a local folder") -> None:
    """Refuse the name of a model or `data set` that is neither in the hub's cache nor can be asked for.

    `near` are names, beside folders here and what is in the cache, that may have been meant; `instead` is what to do.

    Raises:
        UsageError: says where it was looked for, and which name is like it.
    """
    from huggingface_hub import constants

    why = reach_hub()
    kept = Path(constants.HF_HUB_CACHE)
    is_kept = any(kept.glob(f"{KINDS[what]}--{name.replace('/', '--')}/snapshots/*"))
    if why and not is_kept and not (what == "data set" and _is_prepared(name)):
        raise UsageError(
            f"{name}: no such folder here, no such {what} in the cache ({kept}), and the hub cannot be asked: {why}."
            f"{_like(name, what, near)} Without a network, {instead}"
        )


def fetch(name: str, *, patterns: list[str], revision: str | None = None, near: Iterable[str] = ()) -> Path:
    """Return the folder of a model or adapter by its hub id; files that fit `patterns` are fetched where they are not cached.

    Raises:
        UsageError: it is not to be had; one line with the reason and a name that is like it.
    """
    require_on_hub(name, near=near)
    import huggingface_hub
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars  # type: ignore[attr-defined, unused-ignore]

    try:
        disable_progress_bars()
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub client raises its own, its transport's and the system's errors
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:160]
        raise UsageError(
            f"{name}: no such folder here, and not to be had from the hub ({reason}).{_like(name, 'model', near)}"
        ) from None
    finally:
        enable_progress_bars()


@contextmanager
def one_line(path: str, what: str) -> Iterator[None]:
    """Turn the libraries' errors in loading a folder or hub id into one line, and keep their progress bars quiet."""
    if not (is_here := Path(path).expanduser().exists()):
        require_on_hub(path)
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    except QuantkitError:
        raise
    except Exception as error:  # libraries raise all there is on files that are not what they expect
        if isinstance(error, OSError) and not is_here:
            raise UsageError(
                f"{path}: no such folder, and the hub gave no {what} of this name ({_first_line(error)});"
                f" check the spelling.{_like(path, 'model')}"
            ) from error
        raise UsageError(f"{path}: the {what} cannot be loaded: {type(error).__name__}: {_first_line(error)}") from error
    finally:
        if bars:
            logging.enable_progress_bar()


def refuse_missing_folder(path: str) -> None:
    """Refuse what is meant as a local folder and is none, and a folder with links that lead out of it; hub ids pass."""
    if (folder := Path(path).expanduser()).is_dir():
        check_folder(folder)
    elif Path(path).is_file():
        raise UsageError(f"{path}: a file; a model is a folder with config.json, or a hub id")
    elif path.startswith(("/", "./", "../", "~", ".\\")) or path.count("/") > 1 or "\\" in path or path.endswith("/"):
        raise UsageError(f"{path}: no such folder; it looks like a local path, so it was not looked for on the hub")


def refuse_folder_without_model(folder: Path) -> None:
    """Refuse a folder that is there and holds no `config.json`; an adapter's is told from others."""
    if folder.is_dir() and not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        what = "an adapter; fold it in (quantkit merge) or name its base" if adapter else "not a model folder"
        raise UsageError(f"{folder}: no config.json: {what}")


def _silence_of(endpoint: str) -> str:
    """Return why there is no answer from the hub; empty where there is one."""
    patience_s = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or PATIENCE_S)
    said: list[str] = []
    asking = Thread(target=lambda: said.append(_ask(endpoint, patience_s)), daemon=True)
    asking.start()  # resolving a name, and trying all its addresses, have no time limit that a request could set
    asking.join(patience_s)
    return said[0] if said else f"{endpoint} gives no answer within {patience_s:g} s; HF_HUB_ETAG_TIMEOUT sets how many"


def _ask(endpoint: str, patience_s: float) -> str:
    from huggingface_hub import get_session

    try:
        status = get_session().head(endpoint, timeout=patience_s).status_code
    except Exception as error:  # the client's, a proxy's and the system's errors
        return f"{endpoint} gives no answer ({type(error).__name__}: {_first_line(error)[:100]})"
    return f"{endpoint} answers {status}" if status >= 500 else ""


def _is_prepared(name: str) -> bool:
    """Whether `datasets` has a data set in a cache of its own, where `Owner/CamelCase` is called `Owner___camel_case`."""
    from huggingface_hub import constants

    folder = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    return any(item.name.replace("_", "").lower() == re.sub("[_/]", "", name).lower() for item in folder.glob("*___*"))


def _like(name: str, what: str, near: Iterable[str] = ()) -> str:
    """Return a question that names what may have been meant: a folder here, or one in the cache."""
    from huggingface_hub import constants

    parent, known = Path(name).parent, [*near]
    with suppress(OSError):
        known += [str(parent / item.name) for item in parent.iterdir() if item.is_dir()]
    known += [
        item.name.partition("--")[2].replace("--", "/") for item in Path(constants.HF_HUB_CACHE).glob(f"{KINDS[what]}--*")
    ]
    return did_you_mean(name, known)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
