"""Is an evaluation faster than the field's own harness, and are the numbers the same?

    python benchmarks/evaluate.py [--quick] [--json FILE] [--model DIR] [--data FILE] [--rows N] [--prompts N] [--rounds N]

quantkit beside EleutherAI's lm-eval (extra `harness`) on one loaded model, on the same texts: answers to prompts with the same
longest answer and the same end, log-likelihoods of the options of multiple-choice rows, perplexity. In float32 the numbers must
be the same; in bfloat16 every batch size of any tool rounds otherwise, so only times are goals then. quantkit runs with the
batch size of its command's default, lm-eval with the best of several; where there is a GPU, its `auto` is one of them (on a
CPU, which never says that memory is short, `auto` takes its largest, 64, after trying it: 64 alone stands for it). Ways take
turns in every round; after the first only lm-eval's best size stays. Seconds are the processor's on a CPU. A ratio is the
median over rounds. The rows are generated arithmetic, or those of `--data`, in ARC's columns or with lettered options in the
question. Exit code 3 when a goal does not hold.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from evaluate_cases import LmEval, Ours, Rows, Way, read_rows
from goals import Goal, add_flags, finish
from models import model_folder

BATCH_SIZE = 32
"""Default of `quantkit evaluate`."""
PERPLEXITY_ROWS = 16
"""Texts whose perplexity is compared; nothing is timed there."""


def main() -> int:
    """Measure, print, write, and return the exit code."""
    arguments = parse()
    import torch
    from transformers import AutoModelForCausalLM

    from quantkit.console import use_stderr
    from quantkit.environment import describe_environment
    from quantkit.evaluation.harness.model import quiet, require_harness
    from quantkit.modeling import load_tokenizer, resolve_device

    use_stderr()
    version, folder = require_harness(), model_folder(arguments.model, quick=arguments.quick)
    device = resolve_device("auto")
    tokenizer = load_tokenizer(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, arguments.dtype)).to(device).eval()
    sizes: list[int | str] = [int(size) for size in arguments.sizes.split(",")]
    if model.device.type == "cuda":
        sizes.append("auto")
    with tempfile.TemporaryDirectory() as scratch, quiet():
        rows = read_rows(arguments.data, tokenizer, rows=arguments.rows, prompts=arguments.prompts, folder=Path(scratch))
        found = measure(model, tokenizer, rows, sizes, rounds=arguments.rounds, max_new_tokens=arguments.max_new_tokens)
    setting = {
        "model": Path(folder).name,
        "dtype": arguments.dtype,
        "lm_eval": version,
        "rows": len(rows.questions),
        "prompts": len(rows.prompts),
        "max_new_tokens": arguments.max_new_tokens,
        "rounds": arguments.rounds,
        "batch_size": BATCH_SIZE,
        "lm_eval_batch_sizes": sizes,
        "threads": torch.get_num_threads(),
        "data": "generated" if arguments.data is None else Path(arguments.data).name,
    }
    result = {"setting": setting, "environment": describe_environment(device)} | found
    show(result)
    return finish("evaluate", result, judge(result, quick=arguments.quick), arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--model", metavar="DIR", help="a model of your own")
    parser.add_argument("--data", metavar="FILE", help="multiple-choice rows of your own instead of generated ones")
    parser.add_argument("--rows", type=int, default=200, help="multiple-choice rows (default 200)")
    parser.add_argument("--prompts", type=int, default=32, help="prompts to answer (default 32)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default 64)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="what is computed in")
    parser.add_argument("--sizes", default="1,8,16,64", help="batch sizes lm-eval is tried with (default 1,8,16,64)")
    return parser.parse_args()


def measure(
    model: Any, tokenizer: Any, rows: Rows, sizes: Sequence[int | str], *, rounds: int, max_new_tokens: int
) -> dict[str, Any]:
    """Return what every way took and gave."""
    ours = Ours(model, tokenizer)
    theirs = {size: LmEval(model, tokenizer, batch_size=size) for size in sizes}
    ours.answers(rows.prompts[:2], batch_size=2, max_new_tokens=4)  # whatever is set up once
    next(iter(theirs.values())).likelihoods(rows.pairs[:2])
    generation = [
        Way("quantkit", lambda: ours.answers(rows.prompts, batch_size=BATCH_SIZE, max_new_tokens=max_new_tokens)),
        Way("quantkit, one by one", lambda: ours.one_by_one(rows.prompts, max_new_tokens=max_new_tokens)),
        *(
            Way(f"lm-eval, {size}", lambda peer=peer: peer.answers(rows.prompts, max_new_tokens=max_new_tokens))
            for size, peer in theirs.items()
        ),
    ]
    likelihood = [
        Way("quantkit", lambda: ours.likelihoods(rows.pairs, batch_size=BATCH_SIZE)),
        *(Way(f"lm-eval, {size}", lambda peer=peer: peer.likelihoods(rows.pairs)) for size, peer in theirs.items()),
    ]
    for ways in (generation, likelihood):
        take_turns(model, ways, rounds)
    texts = ["\n".join([question, *options]) for question, options in zip(rows.questions, rows.options, strict=True)]
    texts = texts[:PERPLEXITY_ROWS]
    some = list(theirs.values())[len(theirs) // 2]
    first = some.wrapped.prefix_token_id
    return {
        "generation": report(generation) | {"answers": compare_answers(generation)},
        "likelihood": report(likelihood) | {"accuracy": compare_accuracies(rows, likelihood)},
        "perplexity": {
            "quantkit": ours.perplexity(texts, first, batch_size=BATCH_SIZE),
            "lm-eval": some.perplexity(texts),
        },
    }


def take_turns(model: Any, ways: Sequence[Way], rounds: int) -> None:
    """Run every way once a round, in turn; of lm-eval's only the fastest after the first round."""
    from quantkit.console import say

    for number in range(rounds):
        best = min((way for way in ways if way.name.startswith("lm-eval")), key=lambda way: sum(way.seconds[:1]))
        for way in ways:
            if number == 0 or way is best or not way.name.startswith("lm-eval"):
                way.take(model)
                say(f"round {number + 1}: {way.name}: {way.seconds[-1]:.1f} s")


def report(ways: Sequence[Way]) -> dict[str, Any]:
    """Return seconds and counts of each way, and how many times faster than each other one quantkit is."""
    mine = ways[0]
    rest = {way.name: ratios(mine.seconds, way.seconds) for way in ways[1:]}
    peers = [way for way in ways if way.name.startswith("lm-eval")]
    best = min(peers, key=lambda way: way.seconds[0])
    return {
        "ways": {way.name: {"seconds": way.seconds, **way.counted} for way in ways},
        "times_faster": {name: {"median": median(found), "rounds": found} for name, found in rest.items()},
        "best_of_lm_eval": best.name,
    }


def ratios(mine: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return how many times longer the other way took, round by round, as far as it took part."""
    return [other / own for own, other in zip(mine, theirs, strict=False)]


def compare_answers(ways: Sequence[Way]) -> dict[str, int]:
    """Return for each other way how many answers equal quantkit's."""
    mine = ways[0].result
    return {way.name: sum(a == b for a, b in zip(mine, way.result, strict=True)) for way in ways[1:]} | {"of": len(mine)}


def compare_accuracies(rows: Rows, ways: Sequence[Way]) -> dict[str, Any]:
    """Return both tools' accuracies, the rows they differ in, and by how much the log-likelihoods differ at most."""
    mine = ways[0]
    peer = min((way for way in ways[1:]), key=lambda way: way.seconds[0])
    ours, theirs = rows.accuracies(mine.result), rows.accuracies(peer.result)
    return {
        metric: {
            "quantkit": sum(ours[metric]) / len(ours[metric]),
            "lm-eval": sum(theirs[metric]) / len(theirs[metric]),
            "rows_that_differ": [
                at for at, pair in enumerate(zip(ours[metric], theirs[metric], strict=True)) if len(set(pair)) > 1
            ],
        }
        for metric in ours
    } | {"largest_difference_nats": max(abs(a - b) for a, b in zip(mine.result, peer.result, strict=True))}


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    from quantkit.console import say, table

    for job, title in (("generation", "Answers to prompts"), ("likelihood", "Log-likelihoods of options")):
        faster = found[job]["times_faster"]
        table(
            title,
            ["way", "seconds", "quantkit is faster by", "model calls", "positions", "with logits"],
            [
                [
                    name,
                    f"{median(way['seconds']):.1f}",
                    f"{faster[name]['median']:.2f}" if name in faster else "",
                    *(f"{way[key]:,}" for key in ("calls", "positions", "logits")),
                ]
                for name, way in found[job]["ways"].items()
            ],
        )
    accuracy, answers = found["likelihood"]["accuracy"], found["generation"]["answers"]
    same = ", ".join(f"{count} of {answers['of']} by {name}" for name, count in answers.items() if name != "of")
    say(f"the same answers as quantkit's: {same}")
    for metric in ("acc", "acc_norm"):
        one = accuracy[metric]
        say(f"{metric}: quantkit {one['quantkit']:.4f}, lm-eval {one['lm-eval']:.4f}")
    say(f"largest difference of a log-likelihood: {accuracy['largest_difference_nats']:.2g} nats")
    say(f"perplexity: quantkit {found['perplexity']['quantkit']:.6f}, lm-eval {found['perplexity']['lm-eval']:.6f}")


def judge(found: dict[str, Any], *, quick: bool) -> list[Goal]:
    """Compare what was found with what must hold; times of a quick run are those of calling Python, and no goals."""
    generation, likelihood = found["generation"], found["likelihood"]
    goals = [] if found["setting"]["dtype"] == "bfloat16" else judge_equality(found)
    if quick:
        return goals
    wanted = [("answers, one prompt at a time", generation, "quantkit, one by one", 3.0)]
    wanted += [(f"answers, {generation['best_of_lm_eval']}", generation, generation["best_of_lm_eval"], 1.3)]
    wanted += [(f"log-likelihoods, {likelihood['best_of_lm_eval']}", likelihood, likelihood["best_of_lm_eval"], 1.3)]
    for text, job, name, least in wanted:
        faster = job["times_faster"][name]["median"]
        goals.append(Goal(f"times faster: {text}", faster, f"at least {least:g}", faster >= least))
    return goals


def judge_equality(found: dict[str, Any]) -> list[Goal]:
    """Compare what both tools, and batches and single prompts, gave."""
    generation, accuracy, goals = found["generation"], found["likelihood"]["accuracy"], []
    answers = generation["answers"]
    for name in ("quantkit, one by one", generation["best_of_lm_eval"]):
        same = answers[name]
        goals.append(Goal(f"answers equal to {name}", f"{same} of {answers['of']}", "all", same == answers["of"]))
    for metric in ("acc", "acc_norm"):
        differ = len(accuracy[metric]["rows_that_differ"])
        goals.append(Goal(f"{metric}: rows judged otherwise than by lm-eval", float(differ), "0", differ == 0))
    mine, theirs = found["perplexity"]["quantkit"], found["perplexity"]["lm-eval"]
    apart = abs(mine - theirs) / theirs
    goals.append(Goal("perplexity: relative difference to lm-eval", apart, "at most 1e-3", apart <= 1e-3))
    return goals


if __name__ == "__main__":
    sys.exit(main())
