"""Which flags does `quantkit merge` take? One adapter, and its settings under the names that a run file uses, too.

They are read by the function that reads those of `quantkit train`, so that hyphens, `--no-x` and spelling suggestions work
alike.
"""

import shutil
import sys
import textwrap
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Annotated, Any, get_type_hints

from quantkit.config import DtypeName, MergePolicy
from quantkit.errors import UsageError
from quantkit.options import check_value
from quantkit_tools.field_help import field_docstrings
from quantkit_tools.flags import read_words
from quantkit_tools.folder_flag import with_own_folder_flag

RENAMED = {"merge": "policy", "merge_policy": "policy", "base": "into", "dtype": "save_dtype"}
"""Another name → the setting that it means."""
SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}
USAGE = "quantkit merge ADAPTER [--policy dequantized|base|requantized]"


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Fold a kept adapter into its base and save the model under its standardized name."""

    adapter: str
    """The adapter: an artifact's name, or its folder."""
    policy: MergePolicy = "dequantized"
    """Fold into the dequantized base it was trained on; into the original 16-bit base; or, requantized, into the dequantized
    one and quantize the result again, rounded with data."""
    into: str | None = None
    """The base to fold into, where it is not where the adapter's record says: a folder or a hub id."""
    force_base: str | None = None
    """Fold into a base that is not the recorded one: its fingerprint, typed in full. It is recorded."""
    dst: str | None = None
    """Folder under which the result appears by its name; default $QUANTKIT_REGISTRY or artifacts. A path whose last part is
    that name is the result's own folder."""
    save_dtype: DtypeName | None = None
    """Data type of dense weights; default: that of the base's own dense weights."""
    data: str | None = None
    """Held-out rows to compare the models on; default: the evaluation rows of the adapter's training, else training rows."""
    calib: str | None = None
    """Requantized only: text to round weights on; sft (default, where recorded): the rows the adapter was trained on."""
    calib_rows: int = 128
    """Rows of calibration text."""
    calib_length: int = 512
    """Tokens of a calibration row."""
    calib_min_tokens: int = 2048
    """Fewest tokens of calibration text that are accepted."""
    max_lost_gain: float | None = None
    """Mark the result where it loses more than this share of the fine-tune's gain; default 0.1, requantized 0.2."""
    seed: int = 42
    """Draws rows."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    trust_remote_code: bool = False
    """Run model code that comes with a checkpoint."""
    overwrite: bool = False
    """Replace an artifact of the same name."""

    def __post_init__(self) -> None:
        for name in ("calib_rows", "calib_length", "calib_min_tokens"):
            if getattr(self, name) < 2:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 2")
        if self.max_lost_gain is not None and not 0 <= self.max_lost_gain <= 1:
            raise UsageError(f"max_lost_gain is {self.max_lost_gain}; it must be a share between 0 and 1")
        if self.calib is not None and self.policy != "requantized":
            raise UsageError(
                f"--calib is for --policy requantized; {self.policy} rounds nothing (--data names rows to compare on)"
            )


@dataclass(frozen=True)
class MergeFlags:
    """What a command line of `quantkit merge` asks for."""

    config: MergeConfig
    dry_run: bool = False
    """Print name, policy, size and memory, and stop."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def parse_merge_flags(arguments: list[str]) -> MergeFlags:
    """Turn a command line into checked settings; `--help` prints the flags and exits with 0.

    Raises:
        UsageError: no adapter or more than one is named, a flag is unknown, or a value does not fit.
    """
    if {"-h", "--help"}.intersection(arguments):
        _show_help()
    if not arguments or arguments[0].startswith("--"):
        raise UsageError(f"no adapter is named, and it stands first; {USAGE}")
    own = {item.name for item in fields(MergeConfig)} - {"adapter"}
    kinds = {**get_type_hints(MergeConfig), **get_type_hints(MergeFlags)}
    switches = {name for name, kind in kinds.items() if "bool" in str(kind)}
    known = own | {*RENAMED, "dry_run", "json"}
    given = read_words(
        with_own_folder_flag(arguments[1:], "dst"), known=known, switches=switches, canonical=_canonical, verb="merge"
    )
    values: dict[str, Any] = {}
    for spelling, value in given.items():
        if _canonical(spelling) in values:
            raise UsageError(f"--{spelling} and another flag both set {_canonical(spelling)}; keep one")
        values[_canonical(spelling)] = value
    switched = {name: check_value(MergeFlags, name, values.pop(name, False), where="flags") for name in ("dry_run", "json")}
    if values.get("save_dtype") in SHORT_DTYPES:
        values["save_dtype"] = SHORT_DTYPES[values["save_dtype"]]
    settings = {name: check_value(MergeConfig, name, value, where="flags") for name, value in values.items()}
    return MergeFlags(MergeConfig(adapter=arguments[0], **settings), **switched)


def _canonical(spelling: str) -> str:
    return RENAMED.get(spelling, spelling)


def _show_help() -> None:
    import tyro

    helps = field_docstrings(MergeConfig)
    hints = get_type_hints(MergeConfig)
    shown: list[tuple[str, Any, Any]] = [
        ("adapter", Annotated[tyro.conf.Positional[str], tyro.conf.arg(help=helps["adapter"], metavar="ADAPTER")], field()),
        *(
            (item.name, Annotated[hints[item.name], tyro.conf.arg(help=helps[item.name])], field(default=item.default))
            for item in fields(MergeConfig)
            if item.name != "adapter"
        ),
    ]
    command = {"dry_run": MergeFlags, "json": MergeFlags}
    texts = field_docstrings(MergeFlags)
    shown += [(name, Annotated[bool, tyro.conf.arg(help=texts[name])], field(default=False)) for name in command]
    width = min(shutil.get_terminal_size().columns, 100)
    text = (
        "Fold a kept adapter into its base, one tensor at a time; compare with the adapter on the base it was trained on;"
        " save under its standardized name. Exit code 3: the result lost too much of the fine-tune's gain, and is marked."
    )
    tyro.cli(
        make_dataclass("Merge", shown, frozen=True),
        prog="quantkit merge",
        description=textwrap.fill(text, width, break_on_hyphens=False),
        args=["--help"],
    )
    sys.exit(0)
