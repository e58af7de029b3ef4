"""What do all checks say together, and which figures stand beside them? Composition only: each check stands in its module."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from quantkit.config import RunConfig
from quantkit.data.prepare import ReadData
from quantkit.data.report import DataReport
from quantkit.layout import counted
from quantkit.preflight import rows, scripts, template, tokens
from quantkit.preflight.finding import SEVERITIES, Finding, Severity, ordered
from quantkit.preflight.look import Look, ModelFacts
from quantkit.preflight.samples import Sample, choose

SCHEMA_VERSION = 1
CHECKS = (*rows.CHECKS, *tokens.CHECKS, *scripts.CHECKS, *template.CHECKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What is known about a run's data before its first step."""

    model: str
    dataset: str
    findings: tuple[Finding, ...]
    """Worst first."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    report: DataReport | None = None
    """What was counted; None where no row can be used."""
    longest: int = 0
    """Tokens of the longest training row before it was cut."""
    samples: tuple[Sample, ...] = ()

    def of(self, severity: Severity) -> list[Finding]:
        """Return the findings of one severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def verdict(self) -> str:
        """Return the outcome in one line."""
        errors, warnings = len(self.of("error")), len(self.of("warning"))
        counts = f"{counted(errors, 'error')}, {counted(warnings, 'warning')}"
        if errors:
            return f"{counts}: training on this would not teach what was meant"
        return f"{counts}: look at them before training" if warnings else "nothing stands against training on this"

    @property
    def figures(self) -> list[tuple[str, str, str]]:
        """Return name, value for the training set and value for the evaluation set, as text for people."""
        if self.report is None:
            return []
        other = self.report.evaluation
        right = [value for _, value in _figures(other)] if other else [""] * len(_figures(self.report))
        return [(name, value, more) for (name, value), more in zip(_figures(self.report), right, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "schema_version": SCHEMA_VERSION,
            "model": self.model,
            "dataset": self.dataset,
            "settings": dict(self.settings),
            "verdict": self.verdict,
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "findings": [finding.to_dict() for finding in self.findings],
            "data": None if self.report is None else self.report.to_dict(),
            "longest_uncut": self.longest,
            "samples": [sample.to_dict() for sample in self.samples],
        }


def examine(read: ReadData, config: RunConfig, model: ModelFacts, *, samples: int = 0) -> Preflight:
    """Run every check over data that was read; `samples` rows are kept to be shown."""
    look = Look(read, config, model)
    return Preflight(
        model=config.model_name_or_path,
        dataset=str(config.dataset_name),
        findings=ordered(finding for check in CHECKS for finding in check(look)),
        settings=_settings(config),
        report=look.report,
        longest=max(look.train.encoded.lengths, default=0),
        samples=tuple(choose(look, samples)) if samples else (),
    )


def unreadable(config: RunConfig, reason: str) -> Preflight:
    """Return the outcome where the tokenizer cannot write conversations at all."""
    finding = Finding("error", "chat template", reason, "choose a model with a tokenizer that can, or mend its chat template")
    return Preflight(
        model=config.model_name_or_path, dataset=str(config.dataset_name), findings=(finding,), settings=_settings(config)
    )


def _settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings that decide what the model sees."""
    return {
        name: getattr(config, name)
        for name in ("revision", "eval_dataset_name", "system_prompt", "trunc_train", "max_length", "on_bad_rows", "packing")
    }


def _figures(report: DataReport) -> list[tuple[str, str]]:
    counts = report.supervised
    return [
        ("rows", f"{report.rows_used:,} of {report.rows_read:,}"),
        ("read as", report.kind),
        ("learnt per row, least", f"{counts.minimum:,}"),
        ("learnt per row, p1", f"{counts.p1:,}"),
        ("learnt per row, median", f"{counts.median:,}"),
        ("learnt tokens", f"{counts.total:,} ({100 * counts.total / report.tokens:.1f}%)"),
        ("all tokens", f"{report.tokens:,}"),
        ("rows cut", f"{report.truncated:,} ({100 * report.truncated / report.rows_used:.1f}%)"),
        ("longest row", f"{report.longest:,} tokens"),
        ("repeated rows", f"{report.duplicates:,}"),
    ]
