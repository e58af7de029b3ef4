"""Does every write go through `quantkit.files`? Looked for in the syntax of all modules, so that a new one cannot slip in.

What may write for itself stands here with its reason; an entry that nothing needs any more fails, too.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOOR = "quantkit/files/"
INSIDE = "into the temporary folder of `new_folder`, which makes it durable and visible"
SCRATCH = "into a temporary folder that nobody reads later"
ALLOWED = {
    ("quantkit/saving.py", "save_artifact", "save_pretrained"): INSIDE,
    ("quantkit/saving.py", "_write_adapter", "save_pretrained"): INSIDE,
    ("quantkit/training/resumable.py", "_save", "save_pretrained"): INSIDE,
    ("quantkit/training/resumable.py", "_save_checkpoint", "replace"): INSIDE,
    ("quantkit/training/resumable.py", "_save_checkpoint", "rmdir"): INSIDE,
    ("quantkit/merging/dense_folder.py", "copy_companions", "copyfile"): INSIDE,
    ("quantkit/merging/dense_folder.py", "copy_companions", "unlink"): INSIDE,
    ("quantkit/merging/tensorfiles.py", "_start", "open"): INSIDE,
    ("quantkit/numerics/blockwise.py", "save", "save_file"): INSIDE,
    ("tools/quantkit_tools/demo_model.py", "real_model", "write_bytes"): INSIDE,
    ("tools/quantkit_tools/demo_model.py", "_convert", "save_pretrained"): INSIDE,
    ("tools/quantkit_tools/adopting/rows.py", "rows_of", "write_text"): SCRATCH,
    ("tools/quantkit_tools/quantizing/texts.py", "_generated_texts", "write_text"): SCRATCH,
    ("quantkit/locks.py", "acquire", "open"): "a lock: the file itself is all there is to it",
    ("quantkit/locks.py", "acquire", "unlink"): "a lock",
    ("quantkit/locks.py", "release", "unlink"): "a lock",
    ("quantkit/evaluation/journal.py", "discard", "unlink"): "a journal whose result is filed",
    (
        "quantkit/evaluation/journal.py",
        "__init__",
        "open",
    ): "appended line by line; a line that was cut off is dropped by its reader",
    ("quantkit/evaluation/journal.py", "__init__", "truncate"): "the line that was cut off",
    ("quantkit/memory.py", "_reset_peaks", "write_text"): "the kernel's /proc/self/clear_refs, no file",
    ("tools/quantkit_tools/sweep_running.py", "_start", "open"): "what a child process prints, as it prints it",
    ("tools/quantkit_tools/cli.py", "_read_no_more", "open"): "the null device, no file",
}
ANY = {
    "write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "rename", "save_file", "save_pretrained", "save_model",
    "unlink", "rmdir", "rmtree", "copyfile", "copytree", "copy2", "truncate", "ftruncate", "mkstemp", "mkdtemp",
    "NamedTemporaryFile", "to_parquet", "to_csv", "to_json", "savez", "savetxt", "fdopen", "removedirs", "renames",
}  # fmt: skip
"""Methods and functions that write, rename or remove, whatever they are called on."""
OF = {
    "os": {"open", "remove", "replace", "link", "symlink", "sendfile"},
    "shutil": {"move", "copy", "make_archive", "unpack_archive"},
    "torch": {"save"}, "np": {"save"}, "numpy": {"save"}, "json": {"dump"}, "pickle": {"dump"}, "yaml": {"dump"},
    "sqlite3": {"connect"}, "sys": set(),
}  # fmt: skip
"""Names that write only as functions of these modules."""
DOORS = {"write_text", "write_json", "new_folder", "remove_folder", "remove_work", "remove_leftovers", "write_manifest"}


def writes(source: str) -> Iterator[tuple[str, str, int]]:
    """Yield function, call and line of everything in a module that writes for itself."""
    tree = ast.parse(source)
    where: dict[ast.AST, str] = {}
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            where[child] = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else where.get(node, "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := _writes(node)):
            yield where[node], name, node.lineno


def _writes(call: ast.Call) -> str:
    """Return the name of a call that writes, or nothing."""
    target = call.func
    name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else ""
    of = target.value.id if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) else ""
    if isinstance(target, ast.Name):
        wrong = name in ANY - DOORS or (name == "open" and _mode_writes(call))
    elif of in OF:
        wrong = name in OF[of] | ANY and ((of, name) != ("os", "open") or _flags_write(call))
    elif name == "replace":
        wrong = len(call.args) == 1 and not call.keywords  # `str.replace` has two
    else:
        wrong = name in ANY or (name == "open" and _mode_writes(call))
    return name if wrong else ""


def _mode_writes(call: ast.Call) -> bool:
    given = [node for item in (*call.args, *(pair.value for pair in call.keywords)) for node in ast.walk(item)]
    said = [node.value for node in given if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return any(text and set(text) <= set("rwaxbt+") and set(text) & set("wax+") for text in said)


def _flags_write(call: ast.Call) -> bool:
    return any(isinstance(node, ast.Attribute) and node.attr in ("O_CREAT", "O_WRONLY", "O_RDWR") for node in ast.walk(call))


def modules() -> list[Path]:
    folders = ("quantkit", "plugins", "registry", "tools", "Fine-tuning")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_nothing_writes_but_through_the_door() -> None:
    found = {}
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith(DOOR) and not name.startswith("quantkit/testing"):  # a test suite
            text = path.read_text(encoding="utf-8")
            found |= {(name, function, call): f"{name}:{line} {function}: {call}" for function, call, line in writes(text)}
    others = [said for key, said in found.items() if key not in ALLOWED]
    assert not others, "write through quantkit.files, or say here why not: " + "; ".join(others)
    assert not set(ALLOWED) - set(found), f"no longer there: {set(ALLOWED) - set(found)}"


@pytest.mark.parametrize(
    "line",
    [
        "open('x.txt', 'w')", "open('x.txt', mode='ab')", "path.open('r+b')", "path.open('rb' if kept else 'wb')",
        "gzip.open('x.gz', 'wt')", "path.write_text('x')", "(a / b).write_bytes(b'x')", "os.rename('x', 'y')", "path.rename(b)",
        "os.replace('x', 'y')", "path.replace(other)", "shutil.move('x', 'y')", "shutil.rmtree('x')", "save_file({}, 'x')",
        "model.save_pretrained('x')", "torch.save(x, 'x')", "json.dump(x, stream)", "os.open('x', os.O_WRONLY)",
        "np.save('x', x)", "sqlite3.connect('x')", "frame.to_csv('x')", "tempfile.mkdtemp()", "path.unlink()", "os.remove('x')",
    ],
)  # fmt: skip
def test_what_writes_is_found(line: str) -> None:
    assert [(function, number) for function, _, number in writes(f"def f():\n    {line}\n")] == [("f", 2)]


@pytest.mark.parametrize(
    "line",
    [
        "open('x.txt')", "path.open('rb')", "text.replace('a', 'b')", "replace(x, name='a')", "webbrowser.open('file')",
        "store.open()", "names.remove('x')", "write_text(path, 'x')", "write_json(path, {})", "x.copy()", "json.dumps(x)",
        "journals.open(task, key)", "os.open('x', os.O_RDONLY)", "archive.open('file')",
    ],
)  # fmt: skip
def test_what_does_not_write_is_left_alone(line: str) -> None:
    assert list(writes(line)) == []
