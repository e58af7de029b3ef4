"""What do the rows say against each other, row of text by row of text, and which goals do they meet?

Two models are compared on the same rows, so the interval is one of their difference: models whose own intervals overlap
widely can still differ surely. Goals are judged on the measured values; the verdict beside them says how sure that is.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from goals import Goal, interval, paired
from quantize_cases import OURS

SEED = 42
SAME = 1e-6
"""Nats by which the saved model may differ from the one in memory: mean KL, and loss per token in a fresh process."""
Rows = Mapping[str, dict[str, Any]]


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return perplexity with its 95 % interval over rows, mean KL and top-1 agreement with the 16-bit model."""
    found = interval(pairs(rows), lambda chosen: sum(a for a, _ in chosen) / sum(b for _, b in chosen), seed=SEED)
    tokens = sum(row["tokens"] for row in rows)
    means = {key: sum(row[key] * row["tokens"] for row in rows) / tokens for key in ("kl", "top1")}
    return {
        "perplexity": math.exp(min(found["value"], 690)),
        "low": math.exp(min(found["low"], 690)),
        "high": math.exp(min(found["high"], 690)),
        "mean_kl": means["kl"],
        "top1_agreement": means["top1"],
    }


def pairs(rows: Sequence[Mapping[str, float]]) -> list[tuple[float, int]]:
    """Return each row's summed loss and number of tokens."""
    return [(row["nll"], int(row["tokens"])) for row in rows]


def compare(rows: Rows) -> list[dict[str, Any]]:
    """Return the comparisons that goals are about, as far as both sides were measured: nats per token, ours minus theirs."""
    found = []
    for mine, theirs in _wanted():
        if mine in rows and theirs in rows:
            difference = paired(pairs(rows[mine]["rows"]), pairs(rows[theirs]["rows"]), seed=SEED)
            ratio = rows[mine]["perplexity"] / rows[theirs]["perplexity"]
            found.append({"of": mine, "against": theirs, "perplexity_ratio": ratio, **difference})
    return found


def judge(rows: Rows) -> tuple[list[Goal], list[str]]:
    """Return the goals that could be judged, and the names of those that could not for want of a row."""
    goals, missing = [], []
    known = {(item["of"], item["against"]): item for item in compare(rows)}
    for mine, theirs in _wanted():
        if (mine, theirs) in known:
            item = known[mine, theirs]
            strict = theirs.startswith(f"{OURS} RTN ") and not mine.startswith(f"{OURS} AWQ")
            ratio = item["perplexity_ratio"]
            holds = ratio < 1 if strict else ratio <= 1
            name = f"{mine} against {theirs}: ratio of perplexities ({item['verdict']})"
            goals.append(Goal(name, ratio, "below 1" if strict else "at most 1", holds))
        elif mine in rows or theirs in rows:
            missing.append(f"{mine} against {theirs}")
    goals += _times(rows, missing)
    goals += _gap(rows, missing)
    worst = [max(row["reload"], row["stored_drift"]) for row in rows.values() if row["by"] == OURS]
    if worst:
        name = f"saved models loaded by transformers, worst of {len(worst)}: nats from the one in memory"
        goals.append(Goal(name, max(worst), f"at most {SAME:g}", max(worst) <= SAME))
    return goals, missing


def closed_gap(rows: Rows, grid: str) -> dict[str, float] | None:
    """Return which share of the loss that a 4-bit float grid adds calibration takes away, with a 95 % interval over rows."""
    names = ("16 bit", f"{OURS} {grid} 4", f"{OURS} {grid}, calibrated 4")
    if not all(name in rows for name in names):
        return None

    def share(chosen: Sequence[tuple[float, ...]]) -> float:
        dense, plain, calibrated = (sum(column) for column in zip(*chosen, strict=True))
        return (plain - calibrated) / (plain - dense) if plain != dense else 0.0

    columns = [[row["nll"] for row in rows[name]["rows"]] for name in names]
    return interval(list(zip(*columns, strict=True)), share, seed=SEED)


def _wanted() -> list[tuple[str, str]]:
    """Return (ours, against) of every comparison that is a goal."""
    own = [(f"{method} {bits}", f"RTN {bits}") for method in ("AWQ", "AdaRound", "BRECQ") for bits in (4, 3, 2)]
    own += [("AdaRound 3", "GPTQ 3"), ("BRECQ 3", "GPTQ 3"), ("SmoothQuant 8", "W8A8 8")]
    found = [(f"{OURS} {mine}", f"{OURS} {other}") for mine, other in own]
    found += [(f"{OURS} GPTQ 4", f"{peer} GPTQ 4") for peer in ("llmcompressor", "gptqmodel")]
    found += [(f"{OURS} HQQ {bits}", f"hqq HQQ {bits}") for bits in (4, 3, 2)]
    names = ("SmoothQuant", "SmoothQuant 0.8", "W8A8")
    return found + [(f"{OURS} SmoothQuant 8", f"llmcompressor {name} 8") for name in names]


def _times(rows: Rows, missing: list[str]) -> list[Goal]:
    """Judge GPTQ's processor seconds by those of the peer whose perplexity is better."""
    mine = rows.get(f"{OURS} GPTQ 4")
    peers = [row for peer in ("llmcompressor", "gptqmodel") if (row := rows.get(f"{peer} GPTQ 4"))]
    if mine is None or not peers:
        missing.append(f"{OURS} GPTQ 4: seconds against the better peer's")
        return []
    better = min(peers, key=lambda row: float(row["perplexity"]))
    share = mine["cpu_s"] / better["cpu_s"]
    return [Goal(f"{OURS} GPTQ 4: processor seconds as a share of {better['name']}'s", share, "at most 0.25", share <= 0.25)]


def _gap(rows: Rows, missing: list[str]) -> list[Goal]:
    found = closed_gap(rows, "NF4")
    if found is None:
        missing.append("NF4: share of the loss gap to 16 bit that calibration closes")
        return []
    name = f"NF4: share of the loss gap to 16 bit that calibration closes ({found['low']:.0%} to {found['high']:.0%})"
    return [Goal(name, found["value"], "at least 0.5", found["value"] >= 0.5)]
