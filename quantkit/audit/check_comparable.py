"""May these results stand in one ranking: same rows, same settings, same metric, each counted once?"""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence

from quantkit.audit.facts import Finding, Measured, Severity, listed
from quantkit.computing import OF_WEIGHTS
from quantkit.evaluation.pairing import HARMLESS, TOLD

DECISIVE = ("max_new_tokens", "num_fewshot", "task_version", "limit", "chat_template", "decoding", "temperature", "do_sample")
"""Settings under which two scores are of different tasks; of the others it is said that they differ."""
IGNORED = ("device",)
ONE_RUN = "one run of all models on the same rows with the same settings, or no ranking"
FEWEST = 10


def settings_differ(group: Sequence[Measured]) -> Iterator[Finding]:
    """Find what differs between the runs of one task besides the model."""
    if len({(item.model, item.artifact) for item in group}) < 2:
        return
    yield from _differ(group, "n", {item.where + item.file + item.model: _text(item.n) for item in group}, "error")
    prints = {item.fingerprint for item in group if item.fingerprint is not None}
    if len(prints) > 1:
        yield _finding(group, "different rows", "rows", f"{len(prints)} different sets of rows go by this name", "error")
    elif not prints and (found := _other_rows(group)):
        yield _finding(group, "different rows", "rows", found, "error")
    for name in sorted({name for item in group for name in item.settings} - set(IGNORED)):
        severity = _weight(group[0].source, name)
        if severity is None:
            continue
        compared = [item for item in group if not (name == "dtype" and item.settings.get("dtype_reason") == OF_WEIGHTS)]
        values = {f"{index}": item.settings.get(name, "not said") for index, item in enumerate(compared)}
        yield from _differ(group, name, values, severity)


def _weight(source: str, setting: str) -> Severity | None:
    """Return how bad a difference in a setting is; in our own results as `quantkit.evaluation.pairing` judges it."""
    if source == "quantkit":
        return None if setting in HARMLESS else "note" if setting in TOLD else "error"
    return "error" if setting in DECISIVE else "warning"


def _differ(group: Sequence[Measured], name: str, values: dict[str, str], severity: Severity) -> Iterator[Finding]:
    found = list(dict.fromkeys(values.values()))
    if len(found) > 1:
        shown = ", ".join(text if len(text) <= 40 else f"{text[:39]}…" for text in found[:6])
        check = "different rows" if name == "n" else "different settings"
        yield _finding(group, check, name, f"{name} differs between the models compared: {shown}", severity)


def _other_rows(group: Sequence[Measured]) -> str | None:
    """Say whether models that were asked by rows had other rows; only where each row has a key or a question."""
    asked = {}
    for item in group:
        if item.rows and all(row.gold is not None for row in item.rows):
            asked[item.model] = frozenset((row.key, row.gold) for row in item.rows)
    if len(set(asked.values())) < 2:
        return None
    common = frozenset.intersection(*asked.values())
    return f"of {max(map(len, asked.values()))} rows only {len(common)} were asked of every model"


def _finding(
    group: Sequence[Measured], check: str, where: str, found: str, severity: Severity, *, needed: str = ONE_RUN
) -> Finding:
    files = list(dict.fromkeys(item.file for item in group))
    return Finding(
        severity=severity,
        check=check,
        file=files[0] if len(files) == 1 else os.path.commonpath(files) or ".",
        model=listed(item.model for item in group),
        where=f"{group[0].task}: {where}",
        found=found,
        needed=needed,
    )


def metrics_differ(group: Sequence[Measured]) -> Iterator[Finding]:
    """Find models of one task that have no metric in common."""
    scored = [item for item in group if any(number.main and number.kind == "share" for number in item.numbers)]
    sets = [{number.name for number in item.numbers if number.main and number.kind == "share"} for item in scored]
    if len(sets) > 1 and not set.intersection(*sets):
        names = sorted(set.union(*sets))
        yield _finding(scored, "different metrics", "metric", f"{' and '.join(names)} stand side by side", "error")


def limited(measured: Measured) -> Iterator[Finding]:
    """Find lm-eval runs on the first rows only."""
    limit = measured.settings.get("limit", "null")
    if measured.source == "lm-eval" and limit not in ("null", "none", "not said"):
        said = f"limit {limit}: the first rows of the set, no random sample of it"
        yield measured.finding("warning", "limit", "config.limit", said, "all rows, or rows drawn at random")


def repeats(everything: Sequence[Measured]) -> Iterator[Finding]:
    """Find results that stand there twice, and models whose every answer is another model's."""
    by_hash: dict[tuple[str, str], list[Measured]] = defaultdict(list)
    for item in everything:
        if item.artifact is not None:
            by_hash[item.artifact, item.task].append(item)
    for (artifact, _), same in by_hash.items():
        if len(same) > 1:
            said = f"the artifact {artifact[:12]} has {len(same)} results of this task; counted once"
            yield _finding(same, "counted twice", "artifact", said, "warning", needed="one result per artifact and task")
    by_text: dict[tuple[str, tuple[float, ...], tuple[str, ...]], list[Measured]] = defaultdict(list)
    for item in everything:
        texts = tuple(row.text for row in item.rows if row.text is not None)
        if (
            len(texts) == len(item.rows) >= FEWEST
            and sum(len(text) for text in texts) >= 8 * len(texts)
            and len(set(texts)) > 1
        ):
            losses = tuple(number.value for number in item.numbers if number.kind == "perplexity")
            by_text[item.task, losses, texts].append(item)
    for same in by_text.values():
        models = list(dict.fromkeys(item.model for item in same))
        if len(models) > 1 and len({item.artifact for item in same}) == (1 if same[0].artifact is None else len(same)):
            said = f"{len(models)} models gave the same text to all {len(same[0].rows)} questions"
            needed = "the weights compared: a quantization that was ignored, or one model evaluated twice, looks like this"
            yield _finding(same, "same answers", "answers", said, "warning", needed=needed)


def _text(value: object) -> str:
    return "not said" if value is None else str(value)
