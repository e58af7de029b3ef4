"""How does lm-eval get exactly the model that quantkit loaded, and no other?

Its wrapper of transformers models is handed the loaded model itself, adapters and quantized layers included; letting it load
a folder by name would evaluate adapters on whatever base their config names, in 16 bit. What the wrapper does to a model
it is given (it ties weights, and sets a padding token) is checked afterwards: the logits of a few tokens must not have
moved. Its progress bars are replaced by ours, which a log file can hold.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

from quantkit.console import Progress, progress
from quantkit.errors import UsageError, VerificationError

PROBE = 16
"""Tokens of the text that logits are compared on."""
SOFTMAX_DTYPE = "float32"
"""lm-eval's default is the model's own type; log-likelihoods rounded to bfloat16 tie options that differ."""
MISSING = "lm-eval is not installed, which --harness runs; pip install 'quantkit[harness]'"


def require_harness() -> str:
    """Return the version of lm-eval that is installed; raises `UsageError` where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("lm-eval")
    except PackageNotFoundError:
        raise UsageError(MISSING) from None


def wrap(model: Any, tokenizer: Any, *, batch_size: int) -> Any:
    """Return lm-eval's `HFLM` around a loaded model.

    It also counts: `generated_tokens` is what the model has generated since it was made, stop tokens included; `title` is
    what its progress is called.

    Raises:
        VerificationError: wrapping changed what the model computes.
    """
    import torch
    from lm_eval.models.huggingface import HFLM

    class Wrapped(HFLM):  # type: ignore[misc]
        """`HFLM` that reports progress through `quantkit.console`, and counts tokens."""

        generated_tokens = 0
        title = "lm-eval"

        def loglikelihood(self, requests: Any, **_: Any) -> Any:
            with _reporting(self, len(requests)):
                return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, **_: Any) -> Any:
            with _reporting(self, len(requests)):
                return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, **_: Any) -> Any:
            with _reporting(self, len(requests)):
                return super().generate_until(requests, disable_tqdm=True)

        def tokens_in(self, before: str, text: str) -> int:
            """Return how many tokens a text has after another one."""
            return len(self._encode_pair(before, text)[1] if before else self.tok_encode(text))

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> Any:
            return super()._loglikelihood_tokens(requests, **kwargs | {"disable_tqdm": True})

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **kwargs: Any) -> Any:
            output = super()._model_generate(context, max_length, stop, **kwargs)
            answers = output[:, context.shape[1] :]
            ends = (answers == self.tokenizer.pad_token_id) | (answers == self.tokenizer.eos_token_id)
            self.generated_tokens += int((ends.cumsum(1) - ends.int() == 0).sum())
            return output

    before = _probe(torch, model)
    wrapped = Wrapped(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=SOFTMAX_DTYPE)
    moved = float((_probe(torch, model) - before).abs().max())
    if not moved == 0.0:
        raise VerificationError(
            f"lm-eval changed the model it was given: logits of {PROBE} tokens moved by up to {moved:.3g} (it ties weights);"
            " its results would be another model's, so none are filed"
        )
    return wrapped


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's and datasets' chatter off stdout, which may belong to `--json`, and their bars out of log files."""
    import datasets
    import lm_eval.api.task as task_module

    logger, bars = logging.getLogger("lm_eval"), not datasets.are_progress_bars_disabled()
    level, bar = logger.level, task_module.tqdm
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    task_module.tqdm = partial(bar, disable=True)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        task_module.tqdm = bar
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


class _Report:
    """Stands where lm-eval would cache each answer as it comes; counts it instead."""

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance = advance

    def add_partial(self, *_: object) -> None:
        self._advance()


@contextmanager
def _reporting(wrapped: Any, total: int) -> Iterator[Progress]:
    own = wrapped.cache_hook
    with progress(wrapped.title, total, unit="requests") as bar:
        wrapped.set_cache_hook(_Report(bar.advance))
        try:
            yield bar
        finally:
            wrapped.set_cache_hook(own)


def _probe(torch: Any, model: Any) -> Any:
    """Return the logits of a few tokens spread over the vocabulary."""
    size = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(PROBE, device=model.device)[None] * (size // PROBE)
    training = model.training
    model.eval()
    with torch.inference_mode():
        logits = model(input_ids=ids).logits.float()
    model.train(training)
    return logits
