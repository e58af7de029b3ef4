"""What follows from the measured steps: rates, shares of the bound, agreement, goals."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from goals import Goal
from training_cases import (
    ADAPTERS,
    OURS,
    OURS_LONG,
    OURS_SINGLE,
    TRL,
    TRL_LONG,
    TRL_PATCHED,
    TRL_TUNED,
    WHOLE,
    adapter_case,
)

RESPONSE_HEAVY = 0.4
"""Share of response tokens from which on the goals for response-heavy rows hold."""
Found = Mapping[str, dict[str, Any]]


def useful_flops(model: Mapping[str, Any], rows: Mapping[str, Any]) -> list[float]:
    """Return the arithmetic that each step needs at the least, without what shared beginnings save.

    Frozen weights: 4 per weight and token, forward and for the input's gradient; adapters 6; causal attention, forward and
    twice that backward; the head 4 per weight and response token.

    >>> model = {"frozen_parameters": 10, "adapter_parameters": 1, "head_parameters": 3, "attention_width": 1, "layers": 1}
    >>> useful_flops(model, {"tokens": [2], "response_tokens": [1], "squares": [4]})
    [128]
    """
    per_token = 4 * model["frozen_parameters"] + 6 * model["adapter_parameters"]
    attention = 6 * model["attention_width"] * model["layers"]
    head = 4 * model["head_parameters"]
    steps = zip(rows["tokens"], rows["response_tokens"], rows["squares"], strict=True)
    return [per_token * tokens + attention * squares + head * responses for tokens, responses, squares in steps]


def rates(found: dict[str, Any], rows: Mapping[str, Any], flops: Sequence[float], gflops: Mapping[str, float]) -> None:
    """Add to a case its tokens per second and its share of the bound, over all measured steps.

    The bound is what the fastest data type's matrix products allow; `share_of_own_bound` is that of the type it computes in.
    """
    cpu_s, wall_s = sum(found["cpu_s"]), sum(found["wall_s"])
    found["tokens_per_cpu_s"] = sum(rows["tokens"]) / cpu_s
    found["tokens_per_s"] = sum(rows["tokens"]) / wall_s
    found["response_tokens_per_cpu_s"] = sum(rows["response_tokens"]) / cpu_s
    found["share_of_bound"] = sum(flops) / (1e9 * max(gflops.values()) * cpu_s)
    found["share_of_own_bound"] = sum(flops) / (1e9 * gflops[found["arithmetic_dtype"]] * cpu_s)


def gradient_difference(file: Path, reference: Path) -> float:
    """Return the relative L2 distance of all gradients together from the reference's."""
    from safetensors.torch import load_file

    mine, theirs = load_file(file), load_file(reference)
    apart = sum(float((mine[name].double() - item).square().sum()) for name, item in theirs.items())
    return float((apart / sum(float(item.square().sum()) for item in theirs.values())) ** 0.5)


def loss_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """Return the largest relative difference of two runs' losses at the same step.

    >>> loss_difference([1.0, 2.0], [1.0, 1.0])
    1.0
    """
    return max(abs(mine - theirs) / abs(theirs) for mine, theirs in zip(one, other, strict=True))


def judge(found: Found, *, all_linear: bool, response_share: float) -> list[Goal]:
    """Compare what was measured with what must hold; what was not measured makes no goal."""
    goals = []
    heavy = response_share >= RESPONSE_HEAVY
    tuned = [name for name in TRL_TUNED.values() if measured(found, name)]
    best = max(tuned, key=lambda name: found[name]["tokens_per_cpu_s"], default=TRL_PATCHED)
    wanted = {TRL: 7.0, TRL_PATCHED: 1.5} if not (heavy or all_linear) else {}
    wanted |= {best: 1.6 if heavy else 2.0 if all_linear else 2.2} if tuned else {}
    for name, least in wanted.items():
        if not measured(found, name, OURS):
            continue
        ratio = found[OURS]["tokens_per_cpu_s"] / found[name]["tokens_per_cpu_s"]
        goals.append(Goal(f"defaults: times as fast as {name}", ratio, f"at least {least}", ratio >= least))
    if measured(found, OURS):
        share = found[OURS]["share_of_bound"]
        goals.append(Goal("defaults: share of the measured bound", share, "at least 0.65", share >= 0.65))
    if measured(found, OURS_SINGLE):
        apart = found[OURS_SINGLE]["gradient_difference"]
        goals.append(Goal("float32: gradients from float64", apart, "at most 1e-5", apart <= 1e-5))
    if measured(found, TRL_TUNED["float32"], OURS_SINGLE):
        apart = loss_difference(found[OURS_SINGLE]["losses"], found[TRL_TUNED["float32"]]["losses"])
        goals.append(Goal("losses of every step from TRL's in float32", apart, "at most 1e-3", apart <= 1e-3))
    if measured(found, TRL_LONG, OURS_LONG):
        share = found[OURS_LONG]["peak_rss_bytes"] / found[TRL_LONG]["peak_rss_bytes"]
        goals.append(Goal("full rows, recomputing: share of TRL's peak", share, "at most 0.2", share <= 0.2))
    for kind in ADAPTERS:
        if measured(found, *(names := (adapter_case(kind, True), adapter_case(kind, False)))):
            ratio = found[names[0]]["tokens_per_cpu_s"] / found[names[1]]["tokens_per_cpu_s"]
            goals.append(Goal(f"{kind}: times as fast as PEFT's modules", ratio, "at least 1.5", ratio >= 1.5))
    return [*goals, *_whole_runs(found)]


def final_loss(losses: Sequence[float]) -> float:
    """Return the mean loss of the last quarter of a run's steps.

    >>> final_loss([4.0, 3.0, 2.0, 1.0])
    1.0
    """
    return mean(losses[-max(len(losses) // 4, 1) :])


def _whole_runs(found: Found) -> list[Goal]:
    """Whether whole runs end where TRL's do, as far as runs of TRL's in another order of rows agree with each other."""
    pairs = [(f"quantkit, {rows}", f"TRL, {rows}") for rows in WHOLE]
    if not all(measured(found, *pair) for pair in pairs):
        return []
    ours, theirs = ([final_loss(found[pair[side]]["losses"]) for pair in pairs] for side in (0, 1))
    apart, noise = abs(mean(ours) - mean(theirs)), stdev(theirs)
    return [Goal("whole runs: final loss from TRL's", apart, f"at most {noise:.4f}, between orders of rows", apart <= noise)]


def measured(found: Found, *names: str) -> bool:
    """Whether these cases have results."""
    return all(name in found and "error" not in found[name] for name in names)
