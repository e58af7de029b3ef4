"""Which runs does a sweep file ask for? The product of its lists over one base of settings, without what it excludes.

A sweep is a run file with lists: the same names for settings, the same errors. Nested loops in a script, the usual way, have
no name for a run that failed, and starts again from the first. Whether a run is possible is for its plan to say, not for
this room.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args

from quantkit.aliases import RENAMED, TRANSLATED, canonical
from quantkit.choices import with_choices
from quantkit.config import NOT_IN_NAMES, SETTINGS, MergePolicy, RunConfig
from quantkit.errors import UsageError, did_you_mean
from quantkit.runfiles import read_data

SECTIONS = ("base", "vary", "exclude", "evaluate")
BASE = "base"
"""In the section evaluate: whether the untrained base is evaluated, too."""
KEPT = "kept"
POLICIES: tuple[str, ...] = (KEPT, *get_args(MergePolicy))
"""What may become of a trained adapter: it stays as it is, or is folded in by one of the merge policies."""
MERGE = "merge"
OF_THE_SWEEP = ("output_dir", "overwrite", "resume_from_checkpoint", "merge_after_train", "name_settings")
"""Settings that are the same for all runs of a sweep."""
SPEAKS_FOR_ITSELF = ("quant_method", "peft_config")
"""Settings whose values people know without the setting's name."""
SAID_BY_NAMES = frozenset(
    {"model_name_or_path", "dataset_name", "quant_method", "peft_config", "lora_r", "use_rslora", "save_dtype", "lm_head_dtype"}
)
"""Settings that names carry anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """One trained adapter or model, and what is to become of it."""

    chosen: dict[str, Any]
    """What this combination takes from each list, as the file spells it; `merge` is not among it."""
    config: RunConfig
    policies: tuple[str, ...]
    """Of `POLICIES`, in the order of the file."""

    @property
    def label(self) -> str:
        """Return what tells it from the others, for people."""
        words = [str(value) if name in SPEAKS_FOR_ITSELF else f"{name} {value}" for name, value in self.chosen.items()]
        return ", ".join(words) or "the base settings"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a sweep file holds."""

    path: Path
    base: dict[str, Any]
    """Settings of every run, under any name that a run file may use."""
    vary: dict[str, tuple[Any, ...]]
    """Setting to its values, in the order of the loops, the first outermost."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations that are left out: each those that agree in all its settings."""
    evaluate: dict[str, Any] | None = None
    """Flags of `quantkit evaluate`; None: nothing is evaluated."""

    @property
    def wants_base(self) -> bool:
        """Whether the untrained base is evaluated, too."""
        wanted = (self.evaluate or {}).get(BASE, False)
        if not isinstance(wanted, bool):
            raise UsageError(f"{self.path}: evaluate.{BASE} is {wanted!r}; it must be true or false")
        return wanted

    def combinations(self, methods: Any = None) -> tuple[list[Combination], int]:
        """Return the runs in their order, and how many adapters or merges `exclude` left out.

        Raises:
            UsageError: a setting is unknown or has a value it cannot have, or an exclusion fits nothing.
        """
        used: set[int] = set()
        found: list[Combination] = []
        left_out = 0
        for chosen in self._products():
            config = self._config(chosen, methods)
            asked = self._policies(config)
            kept = []
            for policy in asked:
                fitting = [index for index, rule in enumerate(self.exclude) if _fits(rule, config, policy)]
                used |= set(fitting)
                kept += [] if fitting else [policy]
            left_out += len(asked) - len(kept)
            if kept:
                shown = {key: _short(key, value) for key, value in chosen.items()}
                found.append(Combination(chosen=shown, config=config, policies=tuple(kept)))
        for index, rule in enumerate(self.exclude):
            if index not in used:
                raise UsageError(f"{self.path}: exclude: {rule} fits no combination; check names and values")
        return found, left_out

    def _products(self) -> Iterator[dict[str, Any]]:
        lists = {key: values for key, values in self.vary.items() if key != MERGE}
        for values in product(*lists.values()):
            yield dict(zip(lists, values, strict=True))

    def _config(self, chosen: Mapping[str, Any], methods: Any) -> RunConfig:
        choices: dict[str, Any] = {}
        for key, value in chosen.items():
            choices |= value if isinstance(value, Mapping) else {key: value}
        where = f"{self.path}: {', '.join(f'{key} {_short(key, value)}' for key, value in chosen.items()) or 'base'}"
        named = tuple(key for key in self.vary if _needs_a_tag(key))
        values = with_choices(self.base, choices)
        listed = RunConfig.from_mapping(values, where=where, methods=methods)
        return listed.with_changes(name_settings=tuple(dict.fromkeys((*listed.name_settings, *named))))

    def _policies(self, config: RunConfig) -> tuple[str, ...]:
        if MERGE in self.vary:
            return tuple(dict.fromkeys(self.vary[MERGE]))
        return (config.merge,) if config.merge_after_train else (KEPT,)


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file (JSON, TOML, YAML).

    Raises:
        UsageError: names file, section and key of whatever is unknown or has the wrong form.
    """
    path = Path(path)
    data = read_data(path, "an object with the sections base and vary")
    for key in data:
        if key not in SECTIONS:
            raise UsageError(f"{path}: {key!r} is no section.{did_you_mean(key, SECTIONS)} Known: {', '.join(SECTIONS)}.")
    base, vary, exclude = data.get("base"), _or_empty(data.get("vary"), {}), _or_empty(data.get("exclude"), [])
    evaluate = data.get("evaluate")
    for section, value, kind in (("base", base, dict), ("vary", vary, dict), ("exclude", exclude, list)):
        if not isinstance(value, kind):
            raise UsageError(f"{path}: {section} must be {'a list' if kind is list else 'an object'} of settings")
    if not isinstance(evaluate, dict | None):
        raise UsageError(f"{path}: evaluate must be an object of flags of quantkit evaluate")
    return Sweep(
        path=path,
        base=dict(base or {}),
        vary={canonical(key): _values(path, key, values) for key, values in vary.items()},
        exclude=tuple(_rule(path, rule) for rule in exclude),
        evaluate=evaluate,
    )


def _or_empty(section: Any, empty: Any) -> Any:
    """Return a section, or what stands for one that is missing or holds nothing at all."""
    return empty if section is None else section


def _values(path: Path, key: str, values: Any) -> tuple[Any, ...]:
    where, name = f"{path}: vary.{key}", canonical(key)
    if name in OF_THE_SWEEP or name in TRANSLATED:
        other = f"{MERGE}: [{KEPT}, …]" if name == "merge_after_train" else TRANSLATED.get(name)
        advice = f"vary {other} instead" if other else "it is the same for all runs; set it in base"
        advice += f", where {KEPT} is an adapter that is not merged" if name == "merge_after_train" else ""
        raise UsageError(f"{where}: cannot be varied; {advice}")
    if name not in SETTINGS:
        raise UsageError(
            f"{where}: no such setting.{did_you_mean(key, [*SETTINGS, *RENAMED])} Options of a method stand beside it:"
            " quant_method: [{quant_method: NAME, option: value}]"
        )
    if not isinstance(values, list) or not values:
        raise UsageError(f"{where}: {values!r} is no list of values")
    for value in values:
        if isinstance(value, Mapping) and name not in {canonical(inner) for inner in value}:
            raise UsageError(f"{where}: {value!r} does not set {name}")
        if name == MERGE and value not in POLICIES:
            raise UsageError(f"{where}: {value!r} is none of {', '.join(POLICIES)}.{did_you_mean(str(value), POLICIES)}")
    return tuple(values)


def _rule(path: Path, rule: Any) -> dict[str, Any]:
    if not isinstance(rule, Mapping) or not rule:
        raise UsageError(f"{path}: exclude: {rule!r} is no object of settings")
    return {canonical(key): value for key, value in rule.items()}


def _fits(rule: Mapping[str, Any], config: RunConfig, policy: str) -> bool:
    """Say whether a combination agrees with all settings of a rule, options included."""
    values = {**config.method_options, **config.to_dict(), MERGE: policy}
    return all(name in values and _same(values[name], value) for name, value in rule.items())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and isinstance(other, str):
        return one.lower() == other.lower()
    alone = [other] if isinstance(one, list) and not isinstance(other, list) else other
    return bool(one == alone)


def _needs_a_tag(name: str) -> bool:
    return name not in SAID_BY_NAMES and name not in NOT_IN_NAMES and name != MERGE


def _short(key: str, value: Any) -> str:
    """Return a value for people: of an object the varied setting, then the others in brackets."""
    if isinstance(value, Mapping):
        own = next(inner for inner in value if canonical(inner) == key)
        others = ", ".join(f"{name} {item}" for name, item in value.items() if name != own)
        return f"{value[own]} ({others})" if others else str(value[own])
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
