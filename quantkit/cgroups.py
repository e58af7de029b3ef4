"""Which control groups is this process in, and how much of the machine's memory do they leave it?

Containers and schedulers (Docker, Kubernetes, Slurm) limit memory and cores by control groups; past a limit of memory the
kernel ends the process without an error that could be caught. `psutil`, which asks the machine, knows nothing of them.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
FILES = {
    2: ("memory.max", "memory.current", ("active_file", "inactive_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}
"""Version of control groups → the files of limit and use, and what of the use the kernel gives back when memory is short."""


def free_in_group() -> int | None:
    """Return the bytes that this process's groups leave it, the tightest of them; None where none has a limit."""
    groups = group_folders("memory", ROOT)
    return min((free for version, folder in groups if (free := _free(folder, version)) is not None), default=None)


def group_folders(controller: str, root: Path = ROOT) -> Iterator[tuple[int, Path]]:
    """Yield version and folder of each group the process is in, innermost first; in a container the top may be its own.

    `controller`, `memory` or `cpu`, chooses among those of the first version; `root` is the folder above `proc` and `sys`.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        number, _, rest = line.partition(":")  # cgroups(7)
        controllers, _, path = rest.partition(":")
        version = 2 if number == "0" else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if version == 1 else "")
        inside = Path(path.lstrip("/"))
        yield from ((version, top / part) for part in (inside, *inside.parents))


def _free(folder: Path, version: int) -> int | None:
    limit_file, used_file, reclaimable = FILES[version]
    try:
        limit = int((folder / limit_file).read_text())
        used = int((folder / used_file).read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or the word "max"
        return None
    return max(limit - used + sum(int(facts.get(name, 0)) for name in reclaimable), 0)
