"""How does `quantkit evaluate --harness TASK` come to its results? By lm-eval, on the model that was loaded for this path.

The flags that only lm-eval reads are refused without it: a number of shots that nothing uses would look as if it had counted.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from quantkit.errors import UsageError
from quantkit.evaluation.results import TaskResult
from quantkit_tools.evaluation.flags import Flags

if TYPE_CHECKING:
    from quantkit.memory import MemoryLog

ONLY_WITH = {"harness_include": None, "num_fewshot": None, "apply_chat_template": False}
"""Flags that say how lm-eval runs, with their defaults."""


def check_harness(flags: Flags) -> None:
    """Raise `UsageError` where flags of the harness go with nothing, or the harness with what it cannot do."""
    if flags.harness is None:
        for name, default in ONLY_WITH.items():
            if getattr(flags, name) != default:
                raise UsageError(f"--{name.replace('_', '-')} is for tasks of lm-eval; --harness names them")
        return
    if not harness_names(flags):
        raise UsageError("--harness names no task; e.g. --harness arc_challenge,hellaswag")
    if flags.pending:
        raise UsageError(
            "--harness does not go with --pending: which rows its tasks have is known once they run; name the paths"
        )
    from quantkit.evaluation.harness.model import require_harness

    require_harness()


def harness_names(flags: Flags) -> list[str]:
    """Return the names after `--harness`."""
    return [name for name in (item.strip() for item in (flags.harness or "").split(",")) if name]


def run_harness(flags: Flags, model: Any, tokenizer: Any, memory: "MemoryLog", on_result: Callable[[TaskResult], None]) -> None:
    """Run the tasks of `--harness`, if any; `on_result` is given each one's result as soon as it is there."""
    names = harness_names(flags)
    if not names:
        return
    from quantkit.evaluation.harness import evaluate_harness

    evaluate_harness(
        model,
        tokenizer,
        names,
        include=flags.harness_include,
        num_fewshot=flags.num_fewshot,
        limit=flags.limit,
        apply_chat_template=flags.apply_chat_template,
        system_prompt=flags.system_prompt,
        batch_size=flags.batch_size,
        seed=flags.seed,
        memory=memory,
        on_result=on_result,
    )
