"""How much of the machine's memory does this process's control group leave it?

Containers and schedulers (Docker, Kubernetes, Slurm) limit memory by control groups; past the limit the kernel ends the
process without an error that could be caught. `psutil`, which asks the machine, knows nothing of them.
"""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
FILES = {
    2: ("memory.max", "memory.current", ("active_file", "inactive_file")),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}
"""Version of control groups → the files of limit and use, and what of the use the kernel gives back when memory is short."""


def free_in_group() -> int | None:
    """Return the bytes that this process's groups leave it, the tightest of them; None where none has a limit."""
    return min((free for version, folder in _folders() if (free := _free(folder, version)) is not None), default=None)


def _folders() -> Iterator[tuple[int, Path]]:
    """Yield version and folder of each group the process is in, innermost first; in a container the root may be its own."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" else 1
        if version == 1 and "memory" not in controllers.split(","):
            continue
        root = ROOT if version == 2 else ROOT / "memory"
        inside = Path(path.lstrip("/"))
        yield from ((version, root / part) for part in (inside, *inside.parents))


def _free(folder: Path, version: int) -> int | None:
    limit_file, used_file, reclaimable = FILES[version]
    try:
        limit = int((folder / limit_file).read_text())
        used = int((folder / used_file).read_text())
        facts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or the word "max"
        return None
    return max(limit - used + sum(int(facts.get(name, 0)) for name in reclaimable), 0)
