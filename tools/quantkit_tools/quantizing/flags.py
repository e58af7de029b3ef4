"""Which flags does `quantkit quantize` take? Its own few, and the options of the chosen method under their own names.

They are read by the function that reads those of `quantkit train`, so that hyphens, `--no-x` and spelling suggestions work
alike. What a method fixes (SmoothQuant: 8 bits) may be said too, and must be right.
"""

import shutil
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from itertools import pairwise
from typing import Annotated, Any, get_type_hints

from quantkit.calibrating import CalibrationSettings
from quantkit.errors import UsageError
from quantkit.methods import Methods, installed_methods
from quantkit.options import check_value
from quantkit.plan import Stage
from quantkit_tools.field_help import field_docstrings
from quantkit_tools.flags import read_words
from quantkit_tools.folder_flag import NAMES, with_own_folder_flag

SAID_OF_WEIGHTS = ("weights_bits", "group_size", "symmetric", "activations_bits", "format")
"""Facts that may be asked for of any method: an option of it, or what its plan must come to."""
RENAMED = {
    "bits": "weights_bits",
    "w_bits": "weights_bits",
    "acts_bits": "activations_bits",
    "sym": "symmetric",
    "model": "src",
    "model_name_or_path": "src",
    "quant_method": "method",
}
"""Another name → the setting or option that it means."""
LISTS = ("ignore",)


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(CalibrationSettings):
    """Quantize a finished model and save it under its standardized name."""

    src: str
    """What to quantize: an artifact, a folder or a hub id with dense 16- or 32-bit weights."""
    method: str
    """Quantization method; `quantkit quantize list` lists them."""
    dst: str | None = None
    """Folder under which the result appears by its name; default $QUANTKIT_REGISTRY or artifacts. A path whose last part is
    that name is the result's own folder."""
    calib: str | None = None
    """Calibration text: a file (.txt, .jsonl, .json, .csv, .parquet), a folder, a built-in name (openmath, …), a hub id; or
    sft: the rows the source was trained on, rendered as then. Default for methods that want text: sft, where recorded."""
    gate_data: str | None = None
    """Held-out text the result is judged on; default: evaluation rows or unused documents of the calibration's source."""
    max_ppl_ratio: float | None = None
    """Mark the result above this multiple of the source's perplexity; default by method and bits."""
    max_kl: float | None = None
    """Mark the result above this mean KL divergence in nats; default by method and bits."""
    min_top1: float | None = None
    """Mark the result below this share of equal likeliest tokens; default by method and bits."""
    ignore: tuple[str, ...] = ()
    """Layers that stay dense: ends of names, wildcards, or re:EXPRESSION. The output head always does."""
    keep_lm_head_fp16: bool = False
    """Store the output head in float16; default: in the source's data type."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint."""
    overwrite: bool = False
    """Replace an artifact of the same name."""
    method_options: Mapping[str, Any] = field(default_factory=dict)
    """The method's own options; on the command line they stand flat beside the others."""
    wanted: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the weights that were asked for and are no options of this method; the plan must agree."""


@dataclass(frozen=True)
class QuantizeFlags:
    """What a command line of `quantkit quantize` asks for."""

    config: QuantizeConfig
    dry_run: bool = False
    """Print name, size, memory and time, and stop."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def parse_quantize_flags(arguments: list[str], *, methods: Methods | None = None) -> QuantizeFlags:
    """Turn a command line into checked settings; `--help` prints the flags and exits with 0.

    Raises:
        UsageError: an unknown flag, a value that does not fit, or no model or method is named.
    """
    methods = methods or installed_methods()
    if {"-h", "--help"}.intersection(arguments):
        _show_help(arguments, methods)
    own = {item.name for item in fields(QuantizeConfig)} - {"method_options", "wanted"}
    options = {item.name for name in methods.names for item in fields(methods.info(name).options)}
    known = own | options | {*RENAMED, *SAID_OF_WEIGHTS, "dry_run", "json"}
    classes = [QuantizeConfig, QuantizeFlags, *(methods.info(name).options for name in methods.names)]
    switches = {name for cls in classes for name, kind in get_type_hints(cls).items() if "bool" in str(kind)}
    given = read_words(
        with_own_folder_flag(arguments, "dst"), known=known, switches=switches, canonical=_canonical, verb="quantize"
    )
    values: dict[str, Any] = {}
    for spelling, value in given.items():
        if _canonical(spelling) in values:
            raise UsageError(f"--{spelling} and another flag both set {_canonical(spelling)}; keep one")
        values[_canonical(spelling)] = value
    for name in ("src", "method"):
        if not isinstance(values.get(name), str):
            raise UsageError(f"--{name} wants one value; quantkit quantize --src MODEL --method METHOD")
    switched = {name: check_value(QuantizeFlags, name, values.pop(name, False), where="flags") for name in ("dry_run", "json")}
    return QuantizeFlags(build_config(values, methods), **switched)


def build_config(values: Mapping[str, Any], methods: Methods) -> QuantizeConfig:
    """Return checked settings from loose values: fields of `QuantizeConfig` and, flat beside them, options of the method.

    Raises:
        UsageError: a name is neither, or a value does not fit.
    """
    info = methods.info(str(values["method"]))
    if Stage.TRAINED not in info.stages:
        raise UsageError(f"{info.name} quantizes while a base is loaded for training; finished models: {_listed(methods)}")
    own = {item.name for item in fields(QuantizeConfig)}
    options = {item.name for item in fields(info.options)}
    settings, chosen, wanted = {}, {}, {}
    for name, value in values.items():
        if name in options:
            chosen[name] = value
        elif name in own:
            listed = [value] if name in LISTS and isinstance(value, str) else value
            settings[name] = check_value(QuantizeConfig, name, listed, where="flags")
        elif name in SAID_OF_WEIGHTS:
            wanted[name] = value
        else:
            owners = [other for other in methods.names if name in {i.name for i in fields(methods.info(other).options)}]
            raise UsageError(f"{name} is no option of {info.name} but of {', '.join(owners)}")
    checked = methods.options(info.name, chosen)
    plain = {name: getattr(checked, name) for name in chosen}
    return QuantizeConfig(**settings | {"method": info.name, "method_options": plain, "wanted": wanted})


def _canonical(spelling: str) -> str:
    return RENAMED.get(spelling, spelling)


def _listed(methods: Methods) -> str:
    return ", ".join(name for name in methods.names if Stage.TRAINED in methods.info(name).stages)


def _show_help(arguments: list[str], methods: Methods) -> None:
    """Print the flags of the verb and of the method that `--method` names; exit with 0."""
    import tyro

    named = [value for flag, value in pairwise(arguments) if flag == "--method"]
    named += [flag.partition("=")[2] for flag in arguments if flag.startswith("--method=")]
    hidden = {"method_options", "wanted"}
    helps = field_docstrings(QuantizeConfig)
    shown = [
        (
            item.name,
            Annotated[item.type, tyro.conf.arg(help=helps[item.name])],
            field(default=item.default) if item.name not in ("src", "method") else field(),
        )
        for item in fields(QuantizeConfig)
        if item.name not in hidden
    ]
    shown.sort(key=lambda item: item[0] not in ("src", "method"))
    texts = field_docstrings(QuantizeFlags)
    shown += [(name, Annotated[bool, tyro.conf.arg(help=texts[name])], field(default=False)) for name in ("dry_run", "json")]
    base: Any = make_dataclass("Quantize", shown, frozen=True)
    sections: list[tuple[str, Any]] = [("quantize", base)]
    sections += [(methods.info(named[0]).name, methods.info(named[0]).options)] if named else []
    width = min(shutil.get_terminal_size().columns, 100)
    text = "Quantize a finished model, judge it against its source, save it. Add --method NAME to see that method's options."
    others = ", ".join(f"--{name}".replace("_", "-") for name in (*RENAMED, *SAID_OF_WEIGHTS, *NAMES) if name != "dst")
    tyro.cli(
        make_dataclass("Quantize", sections),
        prog="quantkit quantize",
        description="\n\n".join(
            textwrap.fill(part, width, break_on_hyphens=False) for part in (text, f"Also understood: {others}.")
        ),
        args=["--help"],
        config=(tyro.conf.OmitArgPrefixes,),
    )
    sys.exit(0)
