"""Which of the processes of a run is this one, and how do they end together?

torchrun, `accelerate launch` and srun start one command several times and tell each process its place in the environment.
All of them train; the first alone prints, writes and merges. They meet in a small store of keys and values beside the
collectives: whoever fails first prints why, and all leave with its exit code. Barriers of the process group, the
alternative, time out while the first process is still merging, and turn one failure into a traceback per process.
"""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar, cast

from quantkit.errors import QuantkitError

Answer = TypeVar("Answer")

POLL_S = 0.05
GRACE_S = 10.0
"""How long a process that was left alone waits for another's word on what failed."""
INTERRUPTED = 130
SIGNS = ("gloo", "NCCL", "Connection closed", "Connection reset")
"""What errors of collectives say that are no class of their own."""


def world_size() -> int:
    """Return how many processes make up the run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """Return the number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def is_first() -> bool:
    """Return whether this process prints, writes and merges."""
    return os.environ.get("RANK", "0") == "0"


def said_by_first(find: Callable[[], Answer]) -> Answer:
    """Return what `find` gives in the first process, in every process; called in that one only."""
    if world_size() == 1:
        return find()
    import torch.distributed as dist

    answer: list[Any] = [find() if is_first() else None]
    dist.broadcast_object_list(answer)
    return cast(Answer, answer[0])


@dataclass(slots=True)
class Processes:
    """The processes of a run, seen from one of them; `store` is None where it is the only one."""

    first: bool = True
    size: int = 1
    store: Any = None
    split_by_launcher: bool = False
    """Whether the launcher was told to split the model over the processes (`sharding` fsdp2)."""
    _stages: int = 0

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Let the first process through what is within, then the others, who find what it wrote."""
        self._stages += 1
        key = f"stage {self._stages}"
        if not self.first and not self._wait_for(key):
            raise SystemExit(self._said())
        yield
        if self.first and self.store is not None:
            self.store.set(key, "done")

    def end(self, code: int) -> int:
        """Say with which code the first process ends, and return it."""
        if self.store is not None:
            self.store.set("ended", str(code))
        return code

    def follow(self) -> int:
        """Wait, without a time limit, until the first process has ended; return its code."""
        gc.collect()  # the model of this process, which nobody needs any more
        self._wait_for("ended")
        return self._said()

    def failed(self, error: BaseException) -> NoReturn:
        """Raise the error in the process that failed first; leave with that process's code, silently, in the others."""
        if self.store is None:
            raise error
        alone = _left_alone(error)
        try:
            if alone and self._wait_for("ended", seconds=GRACE_S):
                raise SystemExit(self._said())
            if self.store.add("failures", 1) > 1 and self._wait_for("ended", seconds=GRACE_S):
                raise SystemExit(self._said())
            self.store.set("ended", str(_code(error)))
        except RuntimeError:  # the store went with the process that held it
            pass
        if not alone:
            raise error
        raise QuantkitError(
            f"process {os.environ.get('RANK')} was left alone: another of the {self.size} ended without a word (killed, or"
            " out of memory?); the launcher's output names it. Go on with resume_from_checkpoint"
        ) from error

    def leave(self) -> None:
        """Let go of the others; a first process that holds the store waits a moment for them to read their exit code."""
        if self.store is None:
            return
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()
        holds_store = self.first and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        until = time.monotonic() + GRACE_S
        try:
            left = self.store.add("left", 1)
            while holds_store and left < self.size and time.monotonic() < until:
                time.sleep(POLL_S)
                left = self.store.add("left", 0)
        except RuntimeError:  # the store is gone: nobody waits
            pass
        self.store = None

    def _said(self) -> int:
        return int(self.store.get("ended"))

    def _wait_for(self, key: str, seconds: float | None = None) -> bool:
        """Return whether the key was written; False when the run ended before, or in time nobody wrote it."""
        until = None if seconds is None else time.monotonic() + seconds
        while not self.store.check([key]):
            if self.store.check(["ended"]) or (until is not None and time.monotonic() > until):
                return False
            time.sleep(POLL_S)
        return True


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return error.exit_code if isinstance(error, QuantkitError) else 1


def _left_alone(error: BaseException | None) -> bool:
    """Whether an error, or the one it was made of, says that another process went away."""
    from torch.distributed import DistError

    while error is not None:
        if isinstance(error, DistError) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)):
            return True
        error = error.__cause__ or error.__context__
    return False
