"""How does a file get onto the disk so that a reader never sees half of it?

One door for every write: a temporary name beside the target, fsync, then one rename. A folder becomes an artifact when
its manifest (size and sha256 of every file) is written last and the whole folder is renamed into place; readers ignore
folders without one. Writing straight into the target, as `save_pretrained` does, leaves an unloadable folder behind when
the process dies in the middle. `tests/test_write_door.py` keeps every other way of writing out of the project.

    single.py      one file: text, JSON
    folders.py     a folder of files that appears whole; its removal
    manifest.py    what a folder holds, and whether it still does
    renaming.py    one step from the old to the new, and what the disk must be told
    leftovers.py   what killed processes left, told apart from what living ones are at
"""

from quantkit.files.folders import making, new_folder, refuse_existing, remove_folder, remove_work
from quantkit.files.leftovers import put_back, remove_leftovers
from quantkit.files.manifest import (
    MANIFEST,
    artifact_hash,
    read_manifest,
    sha256_of,
    verify_manifest,
    write_manifest,
)
from quantkit.files.single import read_json, read_text, write_json, write_text

__all__ = [
    "MANIFEST",
    "artifact_hash",
    "making",
    "new_folder",
    "put_back",
    "read_json",
    "read_manifest",
    "read_text",
    "refuse_existing",
    "remove_folder",
    "remove_leftovers",
    "remove_work",
    "sha256_of",
    "verify_manifest",
    "write_json",
    "write_manifest",
    "write_text",
]
