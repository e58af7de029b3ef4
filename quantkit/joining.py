"""How do the processes that a launcher started find each other, and what may the launcher ask for?

They meet where its environment variables say, before anything is loaded. What accelerate would set up by itself (engines, a
model split its way) is refused or done by quantkit, so that a run is the same whichever launcher started it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count

from quantkit import console
from quantkit.devices import resolve_device
from quantkit.errors import UsageError
from quantkit.processes import Processes, is_first, world_size

_joins = count()

MEETING = timedelta(minutes=10)
"""How long processes may take to start."""
COLLECTIVES = timedelta(minutes=60)
"""How long a collective may wait for the slowest process, e.g. while the first writes a checkpoint."""
FSDP = "ACCELERATE_USE_FSDP"
FSDP_WANTED = {
    "fsdp_version": ("2", "quantkit splits models with FSDP2"),
    "fsdp_offload_params": ("false", "weights stay on their devices"),
    "fsdp_activation_checkpointing": ("false", "recompute does that"),
    "fsdp_cpu_ram_efficient_loading": ("false", "every process reads the model"),
    "fsdp_reshard_after_forward": ("true", "a block's weights are gathered for as long as it computes"),
}
"""What accelerate's configuration of FSDP must say, and why; its other keys change nothing here."""


@contextmanager
def together(device: str) -> Iterator[Processes]:
    """Join the processes that a launcher started, as its environment variables say; all but the first are silent within.

    `device` is the run's setting. Alone, nothing happens.

    Raises:
        UsageError: the environment lacks what processes need to find each other, `device` names one GPU for all, or the
            launcher asks for an engine that quantkit does not use.
        QuantkitError: another process ended without a word.
    """
    if world_size() == 1:
        yield Processes()
        return
    group = _joined(device)
    asked = os.environ.get(FSDP)
    try:
        group.split_by_launcher = _splitting_asked_for()
        if group.split_by_launcher:
            os.environ[FSDP] = "false"  # quantkit does it; accelerate would do it again
        yield group
    except (Exception, KeyboardInterrupt) as error:
        group.failed(error)
    finally:
        if asked is not None:
            os.environ[FSDP] = asked
        group.leave()
        console.silence(False)


def _joined(device: str) -> Processes:
    if lacking := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE is {world_size()}, but {', '.join(lacking)} is not set; start with torchrun or accelerate launch, or"
            " set all of them"
        )
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    found = torch.device(resolve_device(device))
    if found.type == "cuda":
        torch.cuda.set_device(found)
    console.silence(not is_first())
    store, rank, size = next(iter(rendezvous("env://", timeout=MEETING)))
    number = next(_joins)
    group = PrefixStore(f"collectives {number}", store)
    dist.init_process_group(
        "nccl" if found.type == "cuda" else "gloo", store=group, rank=rank, world_size=size, timeout=COLLECTIVES
    )
    return Processes(first=rank == 0, size=size, store=PrefixStore(f"quantkit {number}", store))


def _splitting_asked_for() -> bool:
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        raise UsageError(
            "DeepSpeed splits the model over processes in ways quantkit does not; in accelerate's configuration set"
            " distributed_type to FSDP with fsdp_version 2, or to MULTI_GPU: a whole copy per process (DDP)"
        )
    if os.environ.get(FSDP, "").lower() != "true":
        return False
    for key, (wanted, why) in FSDP_WANTED.items():
        given = os.environ.get(key.upper(), "1" if key == "fsdp_version" else wanted)
        if given.lower() != wanted:
            raise UsageError(f"accelerate's configuration has {key} {given}; set it to {wanted}: {why}")
    return True
