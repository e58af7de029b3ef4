"""The saves that faults are walked through: files, folders, artifacts, merges, quantized models, finished blocks, results."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from quantkit.files import artifact_hash, new_folder, remove_folder, sha256_of, verify_manifest, write_text
from quantkit_registry.records import write_record
from quantkit_registry.store import Registry
from tests.registry import records_of
from tests.reliability.faults.walks import Case, keep_before

HASH = "0123456789abcdef" * 4
EVER = "2026-01-01T00:00:00+00:00"


def committed(folder: Path) -> dict[str, str]:
    """Return name → hash of all folders that readers see, each verified, file by file."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith("."):
            verify_manifest(path)
            found[path.name] = str(artifact_hash(path))
    return found


def listed(root: Path) -> dict[str, str]:
    """Return what the registry lists, each artifact verified; raises where it calls anything broken or unfinished."""
    entries = Registry(root).entries()
    assert all(entry.origin == "quantkit" for entry in entries), [(entry.name, entry.fault) for entry in entries]
    for entry in entries:
        verify_manifest(entry.path)
    return {entry.name: str(entry.hash) for entry in entries}


def checkpoints(root: Path) -> dict[str, str]:
    """Return name → what must be equal in two saves of the same step; the times in a checkpoint's facts are not."""
    whole = committed(root)
    parts = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
    return {name: "".join(sha256_of(root / name / part) for part in parts) for name in whole}


def a_result(tmp: Path) -> Case:
    """One result replaces another of the same artifact and task."""
    registry = Registry(tmp / "result")
    registry.add_result(HASH, "arith", {"score": 1})
    registry.add_result(HASH, "other", {"score": 3})
    keep_before(registry.root)
    return Case(
        "result",
        registry.root,
        lambda: registry.add_result(HASH, "arith", {"score": 2, "rows": list(range(4000))}),
        lambda: registry.results(HASH),
    )


def a_first_result(tmp: Path) -> Case:
    """The first result of an artifact, and of the registry."""
    registry = Registry(tmp / "first result")
    registry.root.mkdir()
    keep_before(registry.root)
    return Case(
        "first result",
        registry.root,
        lambda: registry.add_result(HASH, "arith", {"score": 2}),
        lambda: registry.results(HASH),
    )


def a_report(tmp: Path) -> Case:
    """A page of text replaces another."""
    root = tmp / "report"
    write_text(root / "report.html", "old")
    keep_before(root)
    return Case(
        "report", root, lambda: write_text(root / "report.html", "new" * 50_000), lambda: (root / "report.html").read_text()[:3]
    )


def a_registry_update(tmp: Path) -> Case:
    """An artifact with its record comes to stand beside another."""
    root = tmp / "registry"
    records_of.commit_adapter(root, created_at=EVER)
    keep_before(root)
    return Case("registry", root, lambda: records_of.commit_model(root, created_at=EVER), lambda: listed(root))


def an_overwritten_folder(tmp: Path, *, in_two_steps: bool = False) -> Case:
    """A folder with folders in it replaces another; also where the system cannot exchange two names."""
    root = tmp / ("replaced in two steps" if in_two_steps else "replaced")

    def save(text: str) -> None:
        said = records_of.record(data={"text": text}, created_at=EVER)
        with new_folder(root / said.name, overwrite=True) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "notes.txt").write_text(text * 1000)
            write_record(folder, said)

    def save_new() -> None:
        if not in_two_steps:
            return save("new")
        with patch("quantkit.files.folders.exchange", lambda *_: False):
            return save("new")

    save("old")
    keep_before(root)
    return Case(root.name, root, save_new, lambda: listed(root))


def a_removed_folder(tmp: Path) -> Case:
    """One of two folders is removed."""
    root = tmp / "removed"
    for name in ("checkpoint-1", "checkpoint-2"):
        with new_folder(root / name) as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "model.bin").write_text(name)
    keep_before(root)

    def rotate() -> None:
        from quantkit.files import remove_leftovers

        remove_leftovers(root)
        if (root / "checkpoint-1").exists():
            remove_folder(root / "checkpoint-1")

    return Case("removed", root, rotate, lambda: committed(root))


def an_artifact(tmp: Path, name: str, model: Any, tokenizer: Any, record: Mapping[str, Any], *, overwrite: bool) -> Case:
    """The saving step of a run: weights, tokenizer, record, card."""
    from quantkit.saving import save_artifact

    root = tmp / name
    root.mkdir()

    def save(facts: Mapping[str, Any]) -> None:
        target = root / str(record["name"])
        said = {**record, "data": dict(facts)}
        save_artifact(target, model=model, tokenizer=tokenizer, record=said, overwrite=overwrite)

    if overwrite:
        save({"rows": 1})
    else:
        records_of.commit_adapter(root, created_at=EVER)
    keep_before(root)
    return Case(name, root, lambda: save({"rows": 2}), lambda: listed(root))


def a_merge(tmp: Path, base: Path, adapter: Path, plan: Any) -> Case:
    """Adapters are folded in tensor by tensor, in shards, over an earlier merge."""
    from quantkit.merging import merge_streaming

    root = tmp / "merge"

    def merge(dtype: str) -> None:
        merge_streaming(
            base,
            adapter,
            root / "merged",
            fingerprint=None,
            recipe=plan,
            dtype=dtype,
            max_shard_bytes=100_000,
            overwrite=True,
            progress=False,
        )

    merge("bfloat16")
    keep_before(root)
    return Case("merge", root, lambda: merge("float32"), lambda: committed(root))


def a_finished_block(tmp: Path) -> Case:
    """A quantization keeps its second block."""
    from quantkit.numerics.blockwise import BlockStore
    from quantkit.numerics.grids import UniformGrid, quantize

    root = tmp / "blocks"
    grid = UniformGrid(bits=4, group_size=16)
    store = BlockStore(root / "work", {"bits": 4}, grid.restore)
    weights = {"q_proj": quantize(torch.arange(512.0).reshape(16, 32), grid)}

    def save(index: int) -> None:
        store.open()
        store.save(index, weights, {"norm": torch.ones(8)})

    save(0)
    keep_before(root)
    return Case("blocks", root, lambda: save(1), lambda: committed(root / "work"))


@contextmanager
def standing_before(
    owner: Any, name: str, when: Callable[[Any], bool], then: Callable[[Callable[[], object]], None]
) -> Iterator[None]:
    """Let a program run until it is about to call a method the wanted time; `then` gets that call, to be made in copies."""
    original = getattr(owner, name)

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if when(self):
            then(lambda: original(self, *args, **kwargs))
        return original(self, *args, **kwargs)

    with patch.object(owner, name, stop):
        yield
