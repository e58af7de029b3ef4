"""Walk k through a whole save, do the fault at the k-th call, and see what readers find then and what the next run does."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.reliability.faults.watch import Fault, Seen, watched


@dataclass(frozen=True, slots=True)
class Case:
    """A save under a folder, and what stood in the folder before."""

    name: str
    root: Path
    """The folder; always the same one, since names of folders may stand in what is saved."""
    save: Callable[[], object]
    state: Callable[[], object]
    """What readers find under the root, in words that can be compared; raises where anything is not whole."""


@dataclass(slots=True)
class Walk:
    """What held at how many faults; one line for each that did not."""

    tried: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def held(self) -> int:
        """Return at how many faults all held."""
        return self.tried - len(self.problems)


def keep_before(root: Path) -> None:
    """Keep what stands in a root now: each fault starts from it."""
    shutil.copytree(root, _before(root), symlinks=True)


def calls_of(case: Case) -> Seen:
    """Do the whole save without a fault and return its calls; the root is then in the new state."""
    reset(case.root)
    seen = watched(case.save, case.root)
    assert seen.code == 0, f"{case.name}: {seen.said}"
    return seen


def walk_kills(case: Case, most: int) -> Walk:
    """Kill before at most so many calls, spread over the save: old or new stands there, and the next run ends with the new."""
    walk, old, new, calls = _start(case)
    for at in spread(len(calls), most):
        _reset_and(case, walk, at, "kill", lambda seen: _after_kill(case, seen, old, new))
    return walk


def walk_full(case: Case, most: int, fault: Fault) -> Walk:
    """Fill the disk at so many calls: one line of error, the old state, and no temporary file."""
    walk, old, new, _ = _start(case)
    reset(case.root)
    ends = watched(case.save, case.root, fault=fault, at=10**9)
    from tests.reliability.faults.calls import TAKES_SPACE, WRITES

    count = sum(call.what in (TAKES_SPACE if fault == "full" else WRITES) for call in ends.calls)
    for at in spread(count, most):
        _reset_and(case, walk, at, fault, lambda seen: _after_full(case, seen, old, new))
    return walk


def spread(count: int, most: int) -> Iterator[int]:
    """Yield at most `most` of 1 … count, evenly, the last one included."""
    steps = min(count, most)
    yield from (count * (step + 1) // steps for step in range(steps))


def leftovers(root: Path) -> list[str]:
    """Return hidden names anywhere under a root: whatever was being written."""
    return sorted(path.name for path in root.rglob(".*"))


def reset(root: Path) -> None:
    """Put back what stood in the root before."""
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(_before(root), root, symlinks=True)


def _before(root: Path) -> Path:
    return root.with_name(f"{root.name} before")


def _start(case: Case) -> tuple[Walk, object, object, list[object]]:
    reset(case.root)
    old = case.state()
    seen = calls_of(case)
    new = case.state()
    assert new != old, f"{case.name}: the save changed nothing"
    assert leftovers(case.root) == [], f"{case.name}: {leftovers(case.root)}"
    return Walk(), old, new, list(seen.calls)


def _reset_and(case: Case, walk: Walk, at: int, fault: Fault, judge: Callable[[Seen], str]) -> None:
    reset(case.root)
    seen = watched(case.save, case.root, fault=fault, at=at)
    walk.tried += 1
    try:
        problem = "nothing was hit" if not seen.hit else judge(seen)
    except Exception as error:  # whatever a reader stumbles over is what this test is for
        problem = f"{type(error).__name__}: {error}"
    if problem:
        call = seen.calls[-1] if fault == "kill" and seen.calls else None
        walk.problems.append(f"{case.name}: {fault} at {at} {call or ''}: {problem}")


def _after_kill(case: Case, seen: Seen, old: object, new: object) -> str:
    if seen.code != -9:
        return f"ended with {seen.code}"
    found = case.state()
    both = {**old, **new} if isinstance(old, dict) and isinstance(new, dict) else new  # committed, the older not yet removed
    if found not in (old, new, both):
        return f"readers find {found}"
    again = watched(case.save, case.root)
    refused = found == new and again.code == 2 and "exists" in again.said
    if again.code != 0 and not refused:
        return f"the next run ended with {again.code}: {again.said}"
    if case.state() != new:
        return f"after the next run readers find {case.state()}"
    return f"the next run left {left}" if (left := leftovers(case.root)) else ""


def _after_full(case: Case, seen: Seen, old: object, new: object) -> str:
    lines = seen.said.strip().splitlines()
    if seen.code == 0 and case.state() == new:
        return f"it left {left}" if (left := leftovers(case.root)) else ""
    if seen.code not in (1, 2) or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"ended with {seen.code}: {seen.said}"
    expected = new if "the disk did not confirm it" in seen.said else old  # a file that is there whole, and may be lost again
    if case.state() != expected:
        return f"readers find {case.state()}"
    return f"it left {left}" if (left := leftovers(case.root)) else ""
