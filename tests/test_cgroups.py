"""Is a limit that a container or a scheduler sets seen, whichever of its groups it stands in?"""

from pathlib import Path
from typing import Any

import pytest

from quantkit import cgroups, memory

GIB = 1 << 30


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says which groups the process is in, and writes the files of those that have a limit."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)

    def write(own: str, files: dict[str, tuple[object, int, int]]) -> None:
        (tmp_path / "proc/self/cgroup").write_text(own)
        for folder, (limit, used, cached) in files.items():
            version = 1 if folder.split("/")[0] == "memory" else 2
            names = cgroups.FILES[version]
            place = tmp_path / "sys/fs/cgroup" / folder
            place.mkdir(parents=True, exist_ok=True)
            (place / names[0]).write_text(f"{limit}\n")
            (place / names[1]).write_text(f"{used}\n")
            (place / "memory.stat").write_text(f"anon 5\n{names[2][0]} {cached}\n{names[2][1]} 0\n")

    return write


def test_of_nested_groups_the_tightest_counts_and_the_page_cache_is_not_held_against_it(groups: Any) -> None:
    groups("0::/slurm/job_7\n", {"slurm": (8 * GIB, 6 * GIB, GIB), "slurm/job_7": (16 * GIB, 2 * GIB, 0)})
    assert cgroups.free_in_group() == 3 * GIB


def test_groups_of_the_first_version_are_read(groups: Any) -> None:
    groups("4:memory:/docker/a\n3:cpuset:/docker/b\n", {"memory/docker/a": (4 * GIB, GIB, 0)})
    assert cgroups.free_in_group() == 3 * GIB


def test_a_container_that_sees_its_own_group_as_the_root_is_limited(groups: Any) -> None:
    groups("0::/docker/of-the-host\n", {"": (2 * GIB, GIB, 0)})
    assert cgroups.free_in_group() == GIB


@pytest.mark.parametrize("limit", ["max", "no number"])
def test_without_a_limit_the_machine_counts(limit: str, groups: Any) -> None:
    groups("0::/user\n", {"user": (limit, GIB, 0)})
    assert cgroups.free_in_group() is None
    assert memory.free_bytes("cpu") > 0


def test_a_system_without_control_groups_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    assert cgroups.free_in_group() is None


def test_what_could_be_allocated_is_no_more_than_the_group_allows(groups: Any) -> None:
    groups("0::/job\n", {"job": (3, 1, 1)})
    assert memory.free_bytes("cpu") == 3
    groups("0::/job\n", {"job": (3, 10, 0)})
    assert memory.free_bytes("cpu") == 0


def test_what_a_process_holds_itself_is_its_resident_memory() -> None:
    assert 10 << 20 < memory.own_bytes("cpu") < 100 * GIB


def test_only_the_groups_of_a_controller_are_named_innermost_first(groups: Any, tmp_path: Path) -> None:
    groups("4:memory:/box/inner\n3:cpu,cpuacct:/box\n", {})
    top = tmp_path / "sys/fs/cgroup"
    memory_groups = [(1, top / "memory/box/inner"), (1, top / "memory/box"), (1, top / "memory")]
    assert list(cgroups.group_folders("memory", tmp_path)) == memory_groups
    assert list(cgroups.group_folders("cpu", tmp_path)) == [(1, top / "cpu/box"), (1, top / "cpu")]
