"""Which flags does `quantkit registry adopt` take? What an adapter's own files cannot say: base, method, options, data.

The options of the chosen method stand flat beside the verb's own, as in `quantkit quantize`, and are read by the same function.
"""

import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, get_type_hints

from quantkit.errors import UsageError
from quantkit.methods import Methods, installed_methods
from quantkit.options import check_value
from quantkit_tools.field_help import field_docstrings
from quantkit_tools.flags import read_words
from quantkit_tools.folder_flag import with_own_folder_flag

RENAMED = {
    "model_name_or_path": "base", "base_model": "base", "quant_method": "method", "name": "dataset",
    "bnb_4bit_quant_type": "quant_type", "bnb_4bit_use_double_quant": "double_quant", "bnb_4bit_compute_dtype": "compute_dtype",
    "bnb_4bit_quant_storage": "quant_storage",
}  # fmt: skip
"""Another name → the setting or option that it means."""
HIDDEN = ("folder", "method_options")


@dataclass(frozen=True, kw_only=True)
class AdoptConfig:
    """Take an adapter that was trained elsewhere into the registry, with the recipe of its base."""

    folder: str
    """The adapter's folder; it is only read."""
    base: str | None = None
    """The base it was trained on: a folder or a hub id; default: the one its configuration names."""
    revision: str | None = None
    """Commit, tag or branch of a hub id."""
    method: str | None = None
    """How its base was quantized while it was trained: NoQuant, QLORA, … (`quantkit methods`)."""
    compute_dtype: str = "auto"
    """Data type the base computed in: bfloat16, float16, float32; auto: what this machine would take."""
    dataset: str = "adopted"
    """Word for its training data in the standardized name."""
    data: str | None = None
    """Rows to measure base and adapter on; default: generated arithmetic, which only shows that logits change."""
    registry: str | None = None
    """Folder of artifacts; default $QUANTKIT_REGISTRY or artifacts."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint."""
    overwrite: bool = False
    """Replace an artifact of the same name."""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    """The method's own options; on the command line they stand flat beside the others."""


@dataclass(frozen=True)
class AdoptFlags:
    """What a command line of `quantkit registry adopt` asks for."""

    config: AdoptConfig
    dry_run: bool = False
    """Print what would be recorded, and stop."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def parse_adopt_flags(arguments: list[str], *, methods: Methods | None = None) -> AdoptFlags:
    """Turn a command line into checked settings; `--help` prints the flags and exits with 0.

    Raises:
        UsageError: no folder is named, a flag is unknown, or a value does not fit.
    """
    methods = methods or installed_methods()
    if {"-h", "--help"}.intersection(arguments):
        _show_help(arguments, methods)
    if not arguments or arguments[0].startswith("--"):
        raise UsageError("no adapter is named; quantkit registry adopt FOLDER --base BASE --method METHOD")
    own = {item.name for item in fields(AdoptConfig)} - set(HIDDEN)
    options = {item.name for name in methods.names for item in fields(methods.info(name).options)}
    classes = [AdoptConfig, AdoptFlags, *(methods.info(name).options for name in methods.names)]
    switches = {name for cls in classes for name, kind in get_type_hints(cls).items() if "bool" in str(kind)}
    known = own | options | {*RENAMED, "dry_run", "json"}
    given = read_words(
        with_own_folder_flag(arguments[1:], "registry"),
        known=known,
        switches=switches,
        canonical=_canonical,
        verb="registry adopt",
    )
    values: dict[str, Any] = {}
    for spelling, value in given.items():
        if _canonical(spelling) in values:
            raise UsageError(f"--{spelling} and another flag both set {_canonical(spelling)}; keep one")
        values[_canonical(spelling)] = value
    switched = {name: check_value(AdoptFlags, name, values.pop(name, False), where="flags") for name in ("dry_run", "json")}
    settings = {name: check_value(AdoptConfig, name, value, where="flags") for name, value in values.items() if name in own}
    chosen = {name: value for name, value in values.items() if name not in own}
    if settings.get("method") is None and chosen:
        raise UsageError(f"--{next(iter(chosen)).replace('_', '-')} is an option of a method; name it with --method")
    if settings.get("method") is not None:
        info = methods.info(settings["method"])
        if foreign := set(chosen) - {item.name for item in fields(info.options)}:
            raise UsageError(f"{sorted(foreign)[0]} is no option of {info.name}")
        checked = methods.options(info.name, chosen)
        settings |= {"method": info.name, "method_options": {name: getattr(checked, name) for name in chosen}}
    return AdoptFlags(AdoptConfig(folder=arguments[0], **settings), **switched)


def _canonical(spelling: str) -> str:
    return RENAMED.get(spelling, spelling)


def _show_help(arguments: list[str], methods: Methods) -> None:
    """Print the flags, with those of the method that `--method` names; exit with 0."""
    import tyro

    named = [value for flag, value in pairwise(arguments) if flag == "--method"]
    helps, hints = field_docstrings(AdoptConfig), get_type_hints(AdoptConfig)
    shown: list[tuple[str, Any, Any]] = [
        (
            "folder",
            Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=helps["folder"], metavar="FOLDER")],
            field(),
        ),
        *(
            (item.name, Annotated[hints[item.name], tyro.conf.arg(help=helps[item.name])], field(default=item.default))
            for item in fields(AdoptConfig)
            if item.name not in HIDDEN
        ),
    ]
    texts = field_docstrings(AdoptFlags)
    shown += [(name, Annotated[bool, tyro.conf.arg(help=texts[name])], field(default=False)) for name in ("dry_run", "json")]
    sections: list[tuple[str, Any]] = [("adopt", make_dataclass("Adopt", shown, frozen=True))]
    sections += [(methods.info(named[0]).name, methods.info(named[0]).options)] if named else []
    width = min(shutil.get_terminal_size().columns, 100)
    text = (
        "Take an adapter that was trained elsewhere into the registry. You state how its base was quantized, which no file"
        " records; it is loaded so, checked, measured, and copied under its standardized name. --method NAME adds its options."
    )
    tyro.cli(
        make_dataclass("Adopt", sections),
        prog="quantkit registry adopt",
        description=textwrap.fill(text, width, break_on_hyphens=False),
        args=["--help"],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    sys.exit(0)
