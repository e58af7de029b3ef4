"""What is asked of both tools, and what does each do for it? The same model object, the same texts, the same tokens.

Three jobs: answering prompts, weighing the options of multiple-choice rows, and the perplexity of texts. Both tools get
strings and pay for their own tokenization. While a job runs for the first time it is counted how many positions went through
the model and for how many of them logits came out: that, more than the seconds of a busy machine, says where time goes.
"""

import io
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

PROMPT = "Question: {}\nAnswer:"
OPTIONS = 4


@dataclass(frozen=True)
class Rows:
    """Multiple-choice rows as texts, the option that is right by its place, and prompts to be answered."""

    questions: list[str]
    options: list[list[str]]
    gold: list[int]
    prompts: list[str]
    """Questions as conversations, up to where the answer begins."""

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return a context and a continuation for each option of each row."""
        return [
            (PROMPT.format(question), f" {option}")
            for question, options in zip(self.questions, self.options, strict=True)
            for option in options
        ]

    def accuracies(self, likelihoods: Sequence[float]) -> dict[str, list[bool]]:
        """Return for `acc` (likeliest option) and `acc_norm` (likeliest by characters) whether each row is right."""
        found: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
        values = iter(likelihoods)
        for options, gold in zip(self.options, self.gold, strict=True):
            row = [next(values) for _ in options]
            normed = [value / len(option) for value, option in zip(row, options, strict=True)]
            found["acc"].append(row.index(max(row)) == gold)
            found["acc_norm"].append(normed.index(max(normed)) == gold)
        return found


def read_rows(data: str | None, tokenizer: Any, *, rows: int, prompts: int, folder: Path) -> Rows:
    """Return rows of a file, or generated ones: arithmetic with wrong results that are close to the right one."""
    from quantkit.evaluation.sources import read_tasks

    if data is None:
        path = folder / "choices.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in generated(max(rows, prompts))))
        data = str(path)
    (task,) = read_tasks([data], kind="choice-likelihood", limit=max(rows, prompts))
    examples = list(zip(task.examples, task.choices, task.gold, strict=True))
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": example.question}], tokenize=False, add_generation_prompt=True
        )
        for example, _, _ in examples[:prompts]
    ]
    return Rows(
        questions=[example.question for example, _, _ in examples[:rows]],
        options=[[option.text or option.label for option in options] for _, options, _ in examples[:rows]],
        gold=[[option.label for option in options].index(gold) for _, options, gold in examples[:rows]],
        prompts=texts,
    )


def generated(count: int, *, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield rows in ARC's columns."""
    from quantkit.data.arithmetic import arithmetic_data

    chance, labels = random.Random(seed), "ABCD"[:OPTIONS]
    for row in arithmetic_data(train=1, held_out=count, seed=seed).unseen_numbers:
        sum_text, result = row["answer"].split(" ")[0].split("=")
        near = chance.sample([value for value in range(int(result) - 9, int(result) + 10) if value != int(result)], OPTIONS - 1)
        values = [int(result), *near]
        chance.shuffle(values)
        texts = [f"{sum_text} = {value}" if chance.random() < 0.5 else str(value) for value in values]
        yield {
            "question": row["question"],
            "choices": {"label": list(labels), "text": texts},
            "answerKey": labels[values.index(int(result))],
        }


@dataclass
class Way:
    """One tool with one batch size at one job."""

    name: str
    run: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)
    result: Any = None
    counted: dict[str, int] = field(default_factory=dict)

    def take(self, model: Any) -> None:
        """Run once more and keep the time; the result, and what went through the model, of the first time only."""
        with _counting(model) as counted, redirect_stderr(io.StringIO()):  # progress of single prompts, bars of lm-eval
            started = _now(model)
            result = self.run()
            self.seconds.append(_now(model) - started)
        if not self.counted:
            self.result, self.counted = result, counted


def _now(model: Any) -> float:
    """Return processor seconds on a CPU, which other processes do not lengthen much; seconds of the clock on a GPU."""
    import torch

    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
        return time.perf_counter()
    return time.process_time()


@contextmanager
def _counting(model: Any) -> Iterator[dict[str, int]]:
    counted = {"calls": 0, "positions": 0, "logits": 0}

    def count(_module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        ids = named.get("input_ids", arguments[0] if arguments else None)
        counted["calls"] += 1
        counted["positions"] += ids.numel()
        counted["logits"] += output.logits.shape[0] * output.logits.shape[1]

    hook = model.register_forward_hook(count, with_kwargs=True)
    try:
        yield counted
    finally:
        hook.remove()


class Ours:
    """The jobs as quantkit does them."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def answers(self, prompts: Sequence[str], *, batch_size: int, max_new_tokens: int) -> list[str]:
        """Return what the model answers, a number of prompts at a time."""
        from quantkit.evaluation.generation import generate

        ids = [self.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
        found = generate(self.model, self.tokenizer, ids, batch_size=batch_size, max_new_tokens=max_new_tokens)
        return [answer.text for answer in found]

    def one_by_one(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Return what the model answers to each prompt by itself."""
        return [self.answers([prompt], batch_size=1, max_new_tokens=max_new_tokens)[0] for prompt in prompts]

    def likelihoods(self, pairs: Sequence[tuple[str, str]], *, batch_size: int) -> list[float]:
        """Return the log-likelihood of each continuation."""
        from quantkit.evaluation.likelihood import encode_pair, loglikelihoods

        requests = [encode_pair(self.tokenizer, *pair, add_special_tokens=False) for pair in pairs]
        return [value for value, _ in loglikelihoods(self.model, requests, batch_size=batch_size)]

    def perplexity(self, texts: Sequence[str], first: int, *, batch_size: int) -> float:
        """Return the perplexity of texts that begin after the token `first`."""
        from quantkit.evaluation.perplexity import row_losses

        ids = [[first, *self.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        losses = row_losses(self.model, [SimpleNamespace(input_ids=row, labels=row) for row in ids], batch_size=batch_size)
        return math.exp(sum(loss.all_nll for loss in losses) / sum(loss.all_tokens for loss in losses))


class LmEval:
    """The jobs as lm-eval does them, through its own `HFLM`."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int | str) -> None:
        from lm_eval.models.huggingface import HFLM

        self.wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, add_bos_token=False)

    def answers(self, prompts: Sequence[str], *, max_new_tokens: int) -> list[str]:
        """Return what the model answers; like ours, answers end at the end token only."""
        asked = [_instance("generate_until", prompt, {"max_gen_toks": max_new_tokens, "until": []}) for prompt in prompts]
        return [answer.strip() for answer in self.wrapped.generate_until(asked, disable_tqdm=True)]

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Return the log-likelihood of each continuation."""
        asked = [_instance("loglikelihood", *pair) for pair in pairs]
        return [value for value, _ in self.wrapped.loglikelihood(asked, disable_tqdm=True)]

    def perplexity(self, texts: Sequence[str]) -> float:
        """Return the perplexity of texts that begin after lm-eval's prefix token."""
        asked = [_instance("loglikelihood_rolling", text) for text in texts]
        tokens = sum(len(self.wrapped.tok_encode(text)) for text in texts)
        return math.exp(-sum(self.wrapped.loglikelihood_rolling(asked, disable_tqdm=True)) / tokens)


def _instance(kind: str, *arguments: Any) -> Any:
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
