"""How likely does a model find a text that follows another one?

A continuation's tokens are what is left of the tokens of both texts together after those of the first alone, the rule of the
field, so numbers can be put beside those of other harnesses. Texts that follow the same prompt share its computation: one
pass over the prompt, whose key/value cache then stands behind each of them; single tokens are read off that one pass. Logits
exist only where a token is judged. Running every pair whole, head included, gives the same numbers for several times the work.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from quantkit.console import progress
from quantkit.errors import UsageError, VerificationError
from quantkit.evaluation.forward import batches, logits_at_end, pass_tokens, shares_prefix
from quantkit.evaluation.generation import context_length

LOGITS_AT_ONCE = 1024
"""Positions whose logits exist at a time: 200 MB in float32 at a vocabulary of 49,152."""

Request = tuple[list[int], list[int]]
"""Token ids of a prompt, and of what follows it."""
Likelihood = tuple[float, bool]
"""Summed log-likelihood of the continuation in nats, and whether greedy decoding would have written it."""

Item = tuple[tuple[int, ...], list[int]]
"""Token ids that are run, and the numbers of the requests that are read off their end."""


def encode_pair(tokenizer: Any, prompt: str, continuation: str, *, add_special_tokens: bool = True) -> Request:
    """Return the token ids of a prompt and of what follows it; space at the end of the prompt belongs to the continuation.

    Raises:
        UsageError: the prompt is empty, or the continuation adds no token to it.
    """
    bare = prompt.rstrip()
    if not bare:
        raise UsageError("a log-likelihood needs a prompt; this one is empty")

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)["input_ids"]
        return found

    first, whole = ids(bare), ids(prompt + continuation)
    if len(whole) <= len(first):
        raise UsageError(f"the continuation {continuation!r} adds no token to its prompt")
    return first, whole[len(first) :]


def loglikelihoods(
    model: Any,
    requests: Sequence[Request],
    *,
    batch_size: int,
    title: str = "log-likelihood",
    known: Mapping[int, Likelihood] | None = None,
    on_found: Callable[[int, Likelihood], None] | None = None,
) -> list[Likelihood]:
    """Return the log-likelihood of each continuation after its prompt, in the order of the requests.

    `known` holds those of an earlier run by the request's number, which are not judged again; `on_found` hears of new ones.

    Raises:
        UsageError: a prompt or a continuation has no tokens, or both together exceed the model's context.
        VerificationError: a log-likelihood is not finite.
    """
    import torch

    _check(requests, context_length(model))
    groups: dict[tuple[int, ...], list[int]] = {}
    found = dict(known or {})
    for index in [index for index in range(len(requests)) if index not in found]:
        first = requests[index][0]
        groups.setdefault(tuple(first), []).append(index)
    shared = shares_prefix(model)
    whole: list[Item] = []
    split: list[Item] = []
    for prompt, members in groups.items():
        short = [index for index in members if len(requests[index][1]) == 1]
        long = [index for index in members if len(requests[index][1]) > 1]
        if len(long) > 1 and shared:
            split.append((prompt, members))
            continue
        if short:
            whole.append((prompt, short))
        whole += [(prompt + tuple(requests[index][1][:-1]), [index]) for index in long]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode(), progress(title, len(requests) - len(found), unit="texts") as bar:
            ways: list[tuple[list[Item], Callable[..., dict[int, Likelihood]]]] = [(whole, _whole), (split, _split)]
            for items, work in ways:
                items.sort(key=lambda item: -len(item[0]))
                for batch in batches([len(ids) for ids, _ in items], one_pass=pass_tokens(model), most_rows=batch_size):
                    done = work(model, [items[at] for at in batch], requests)
                    found.update(done)
                    if on_found is not None:
                        for index, likelihood in done.items():
                            on_found(index, likelihood)
                    bar.advance(len(done))
    finally:
        model.train(training)
    for index, (value, _) in sorted(found.items()):
        if not abs(value) < float("inf"):
            raise VerificationError(
                f"the log-likelihood of request {index} is {value}; the model's weights or its compute data type are broken"
            )
    return [found[index] for index in range(len(requests))]


def _check(requests: Sequence[Request], context: int) -> None:
    for index, (prompt, continuation) in enumerate(requests):
        for what, tokens in (("prompt", prompt), ("continuation", continuation)):
            if not tokens:
                raise UsageError(f"request {index}: its {what} has no tokens")
        if len(prompt) + len(continuation) - 1 > context:
            raise UsageError(
                f"request {index}: its prompt of {len(prompt)} tokens and its continuation of {len(continuation)} exceed the"
                f" model's context of {context} tokens; leave out the row"
            )


def _whole(model: Any, items: Sequence[Item], requests: Sequence[Request]) -> dict[int, Likelihood]:
    """Judge texts that are run whole, each with all the requests that are read off its end."""
    ordered = sorted(items, key=lambda item: -_longest(item[1], requests))
    keep = [_longest(members, requests) for _, members in ordered]
    found: dict[int, Likelihood] = {}
    for part in batches(keep, one_pass=LOGITS_AT_ONCE, most_positions=LOGITS_AT_ONCE):
        chosen = [ordered[at] for at in part]
        logits = logits_at_end(model, [ids for ids, _ in chosen], keep[part.start]).logits
        for row, (_, members) in enumerate(chosen):
            for index in members:
                found[index] = _sum(logits[row], requests[index][1])
    return found


def _split(model: Any, items: Sequence[Item], requests: Sequence[Request]) -> dict[int, Likelihood]:
    """Judge continuations of shared prompts: the prompts in one pass, then what follows them on their cache."""
    import torch

    prompts = logits_at_end(model, [ids for ids, _ in items], 1, cached=True)
    begin = prompts.logits[:, -1]
    found: dict[int, Likelihood] = {}
    work = sorted(
        ((row, index) for row, (_, members) in enumerate(items) for index in members),
        key=lambda pair: -len(requests[pair[1]][1]),
    )
    lengths = [len(requests[index][1]) - 1 for _, index in work]
    for row, index in work:
        if len(requests[index][1]) == 1:
            found[index] = _sum(begin[row : row + 1], requests[index][1])
    several = [length for length in lengths if length]
    for part in batches(several, one_pass=pass_tokens(model), most_positions=LOGITS_AT_ONCE):
        rows = torch.tensor([work[at][0] for at in part], device=prompts.mask.device)
        longest = lengths[part.start]
        ids = torch.zeros((len(part), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, place in enumerate(part):
            tokens = requests[work[place][1]][1][:-1]
            ids[at, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[at, : len(tokens)] = 1
        cache = deepcopy(prompts.cache)
        cache.batch_select_indices(rows)
        follows = logits_at_end(model, ids, longest, cached=True, mask=mask, before=prompts.mask[rows], cache=cache).logits
        for at, place in enumerate(part):
            row, index = work[place]
            joined = torch.cat([begin[row : row + 1], follows[at, : lengths[place]]])
            found[index] = _sum(joined, requests[index][1])
    return found


def _longest(members: Sequence[int], requests: Sequence[Request]) -> int:
    """Return the most tokens that one of these requests is judged on."""
    return max(len(requests[index][1]) for index in members)


def _sum(logits: Any, tokens: Sequence[int]) -> Likelihood:
    """Return the summed log-likelihood of tokens under the last rows of float32 `[positions, vocabulary]` logits."""
    import torch

    last = logits[-len(tokens) :].float()
    wanted = torch.tensor(list(tokens), device=last.device)
    judged = last.gather(-1, wanted[:, None]).squeeze(-1) - last.logsumexp(-1)
    return float(judged.double().sum()), bool((last.argmax(-1) == wanted).all())
