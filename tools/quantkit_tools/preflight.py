"""Will these rows teach this model what was meant? (`quantkit preflight`, and part of `quantkit train`)

Takes what `quantkit train` takes and stops before any weights: rows with their mask, figures, and findings, the worst of which
make the exit code 3. Finding out from the trained model is the alternative, and takes hours.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantkit import console
from quantkit.config import RunConfig
from quantkit.errors import UsageError, VerificationError
from quantkit_tools.flags import FileFlags, parse_run_flags
from quantkit_tools.result_files import refuse_unwritable, write_result

if TYPE_CHECKING:
    from quantkit.data.prepare import ReadData
    from quantkit.preflight import Preflight


@dataclass(frozen=True)
class PreflightFlags(FileFlags):
    """Say what is wrong with a run's data before it starts: takes the settings of quantkit train, reads no weights."""

    rows: int = 3
    """Rows to show as the model sees them, with what is learnt of them."""
    html: str | None = None
    """Write a page that holds findings, figures and these rows; --overwrite replaces one."""
    json: bool = False
    """Print one JSON object; human text goes to stderr."""


def main(arguments: list[str]) -> int:
    """Run `quantkit preflight`; 3: training on this would not teach what was meant, 0: nothing worse than warnings."""
    config, flags, _ = parse_run_flags(arguments, PreflightFlags, verb="preflight")
    if flags.json:
        console.use_stderr()
    if config.dataset_name is None:
        raise UsageError("no data set was named; quantkit preflight looks at the rows of --dataset-name")
    if flags.rows < 0:
        raise UsageError(f"command line: rows is {flags.rows}; it must be 0 or more")
    page = None if flags.html is None else Path(flags.html).expanduser()
    if page is not None:
        refuse_unwritable(page, overwrite=config.overwrite)
    found = look_at(config, rows=flags.rows)
    from quantkit_tools.preflight_showing import show

    show(found)
    if page is not None:
        from quantkit.preflight.page import render_page

        write_result(page, render_page(found, made_at=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"))
    if flags.json:
        console.emit_json(found.to_dict())
    return VerificationError.exit_code if found.of("error") else 0


def look_at(config: RunConfig, *, rows: int) -> "Preflight":
    """Read tokenizer, configuration and rows of a run, and return what all checks say; `rows` of them are kept to be shown.

    Raises:
        UsageError: there is no such model or data set, or a file of it cannot be read.
    """
    from quantkit.data import ChatFormat
    from quantkit.modeling import load_tokenizer
    from quantkit.preflight import ModelFacts, examine, unreadable
    from quantkit.skeleton import read_stop_tokens

    model, revision, trust = config.model_name_or_path, config.revision, config.trust_remote_code
    facts = ModelFacts.read(model, revision=revision, trust_remote_code=trust)
    tokenizer = load_tokenizer(model, revision=revision, trust_remote_code=trust)
    stops = read_stop_tokens(model, tokenizer, revision=revision)
    try:
        ChatFormat(tokenizer, stops)
    except UsageError as error:
        return unreadable(config, str(error))
    return examine(read_rows(config, tokenizer, stops, on_bad_rows=None), config, facts, samples=rows)


def read_rows(
    config: RunConfig, tokenizer: Any, stops: Collection[int], *, on_bad_rows: Literal["error", "drop"] | None
) -> "ReadData":
    """Return a run's rows, read, rendered and tokenized; `stops` are the token ids at which generation with the model ends."""
    from quantkit.data import read_data

    return read_data(
        dataset=str(config.dataset_name),
        tokenizer=tokenizer,
        max_length=config.max_length,
        eval_dataset=config.eval_dataset_name,
        system_prompt=config.system_prompt,
        trunc_train=config.trunc_train,
        on_bad_rows=on_bad_rows,
        stop_token_ids=stops,
    )
