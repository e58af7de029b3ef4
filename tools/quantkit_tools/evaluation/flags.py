"""What can be asked of an evaluation? The flags of `quantkit evaluate`, which each of its steps reads.

In a module of their own, since every step takes them and `quantkit_tools.evaluate` takes every step.
"""

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Flags:
    """Detect, load and score models and adapters; several at once are compared in one table."""

    paths: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ARTIFACT…]")]
    """Folders or hub ids; with --pending none stands for every artifact in the registry."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FILE[,FILE…]")] = None
    """Rows to ask: files, folders, built-in names (arc, openmath, NAME:FILE) or hub ids, separated by commas. Without it,
    two generated sets of one-step arithmetic."""
    task: str = "auto"
    """What is measured: numeric (the last \\boxed{…}), choice (a letter), choice-likelihood (the likeliest option), qa (SQuAD:
    exact match and F1), yesno, label (a few classes), perplexity, divergence (from --reference), a plugin's task, or auto (read
    off the rows)."""
    limit: int | None = None
    """Ask only so many rows of each set, drawn by --seed."""
    batch_size: int = 32
    """Prompts at a time; answers are continued with fewer where the memory does not hold so many."""
    max_new_tokens: int = 64
    """Longest answer in tokens."""
    reference: Annotated[str | None, tyro.conf.arg(metavar="PATH|source")] = None
    """Also say how far the next-token distributions are from this model's: mean and 99th-percentile divergence, agreement.
    source: from what each artifact was made from."""
    latency_prompts: int | None = None
    """Prompts of each set that are timed one at a time, after a warm-up; 0 times none. Default one in 25 rows, 2 to 8."""
    fresh: bool = False
    """Start again where an evaluation broke off, instead of keeping the answers it had."""
    system_prompt: str | None = None
    """Ask with this system prompt instead of the one the model was trained with; "" asks without any."""
    method: str | None = None
    """Method whose recipe the base of a foreign adapter is loaded with, which no file records."""
    base: str | None = None
    """Base model of an adapter, where its own record of it cannot be used."""
    registry: str | None = None
    """Folder that keeps the results; default $QUANTKIT_REGISTRY or artifacts."""
    seed: int = 0
    """Draws the rows of --limit and the bootstrap of perplexity's interval; decoding is greedy."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: str = "auto"
    """Compute in bfloat16, float16 or float32; auto: bfloat16 where the device is fast in it, else float32 (float16 on GPUs),
    and a wider one only for weights that it would round. So a model and its quantizations are computed alike."""
    integer_kernels: bool = False
    """Multiply integers on the CPU, as servers do; for models with int8 weights and int8 activations (DynamicINT8,
    SmoothQuant). Without it their rounded numbers are multiplied in --dtype."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint."""
    harness: Annotated[str | None, tyro.conf.arg(metavar="TASK[,TASK…]")] = None
    """Tasks of lm-eval (EleutherAI) to run on the loaded model; --limit takes their first rows. Needs the extra `harness`."""
    harness_include: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of further task definitions for --harness; code they refer to is run."""
    num_fewshot: int | None = None
    """Worked examples before each row of --harness, where its task does not fix them."""
    apply_chat_template: bool = False
    """Ask the rows of --harness through the model's chat template."""
    pending: bool = False
    """Evaluate only artifacts of the registry, and of those only what has no result yet on these rows under these settings."""
    dry_run: bool = False
    """With --pending: list what has no result yet and why, and stop."""
    baseline: str | None = None
    """Compare the others with this one of the paths; default the best one without a mark, which asks more of the others."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""
