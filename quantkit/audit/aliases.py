"""Which fact does a column or key of an unknown evaluation's file hold?

Decided by the column's name alone, from the words such files use; what is not recognised is listed as not understood and
never guessed from its values.
"""

import re
from dataclasses import dataclass

from quantkit.audit.facts import NumberKind

MEAN = r"(?:(?:mean|avg|average|median)_)?"
AFTER = r"(?:_(?:mean|avg|average|median|p50))?"
TOKENS = r"(?:(?:generated|output|new|completion)_)"
COUNT = r"(?:(?:n|num|number_of|count|total)_)?"
ITEMS = r"(?:answers?|samples?|examples?|rows?|questions?|predictions?|outputs?|generations?|responses?|items?)"
SHARE = r"(?:rate|share|fraction|ratio|pct|percent)"

FIELDS = {
    "model": r"(?:model|run|artifact|checkpoint|adapter)(?:_(?:name|id|path|dir|folder|tag|name_or_path))?|name(?:_or_path)?",
    "task": r"(?:eval(?:uation)?_)?(?:dataset|task|benchmark)(?:_(?:name|id|choice|tag))?|dataset_choice",
    "method": r"(?:quanti[sz]ation|quant)(?:_(?:method|type|scheme|label))?|method|q_method",
    "weights_bits": r"(?:weights?|quant|quantization|w)_bits|bits|quantization_bits",
    "bits_per_weight": r"(?:measured_)?bits_per_(?:weight|parameter|param)|bpw",
    "load_in_4bit": r"load_in_4bit",
    "load_in_8bit": r"load_in_8bit",
    "n": rf"n|(?:n|num|number_of|count|total|evaluated)_(?:of_)?(?:eval_)?{ITEMS}|{ITEMS}|n_total|total|count|sample_size"
    rf"|(?:eval_)?{ITEMS}_(?:evaluated|total|count)",
    "parsed": rf"{COUNT}(?:parsed|parse?able|valid|numeric)(?:_(?:{ITEMS}|count|n))?",
    "coverage": rf"coverage|(?:parsed?|parse?able|parsing|valid)(?:_(?:{ITEMS}|success))?_{SHARE}",
    "empty_count": rf"{COUNT}(?:empty|silent|blank|zero_token|0_token|no_output)(?:_(?:{ITEMS}|count))?"
    rf"|{ITEMS}_with_(?:0|zero|no)_tokens",
    "empty": rf"(?:empty|silent|blank|zero_token|0_token)(?:_{ITEMS})?_{SHARE}",
    "repetition": rf"(?:repetition|repetitive|loop)(?:_{ITEMS})?_{SHARE}",
    "stopped": rf"(?:stop|stopped|eos)(?:_{ITEMS})?_{SHARE}",
    "no_answer_count": rf"{COUNT}(?:no_?ans(?:wers?)?|unanswerable)(?:_(?:total|count|questions?))?|noans_total",
    "no_answer": rf"(?:no_?ans(?:wer)?|unanswerable)_{SHARE}",
    "latency_s": rf"{MEAN}(?:latency|(?:inference|generation|response)_time|time_per_{ITEMS}){AFTER}(?:_(?:s|sec|seconds|ms))?"
    rf"|latency_(?:s|sec|seconds|ms){AFTER}",
    "answer_tokens": rf"(?:mean|avg|average)_(?:num_)?{TOKENS}?tokens(?:_generated)?(?:_per_{ITEMS})?"
    rf"|{TOKENS}?tokens(?:_generated)?_(?:mean|avg|average)|tokens_per_{ITEMS}",
    "tokens": rf"(?:total|num|n|sum)?_?(?:{TOKENS}tokens|tokens_generated)(?:_total)?|total_tokens",
    "total_s": r"(?:total|wall|elapsed|run)_?(?:time|duration|runtime)(?:_(?:s|sec|seconds))?|(?:generation|duration)_s",
    "tokens_per_s": rf"{MEAN}(?:decode_)?(?:tokens?|tok|toks)_(?:per_)?(?:s|sec|second){AFTER}|tps",
    "memory_bytes": r"(?:(?:overall|peak|max|gpu|cuda|total)_)*(?:vram|gpu_mem(?:ory)?|memory|mem|reserved|allocated)"
    r"(?:_(?:peak|max|used|usage|reserved|allocated))*(?:_(?:gb|gib|mb|mib|bytes))?",
    "parameters": r"(?:n|num|number_of|total)?_?(?:model_)?(?:params|parameters)(?:_(?:b|m|total))?",
    "seed": r"(?:random_|eval_)?seed",
    "batch_size": r"(?:eval_)?batch_size",
    "max_new_tokens": r"max_(?:new_|gen_|output_|generated_)?(?:tokens|toks)|max_gen_len",
    "num_fewshot": r"(?:num_|n_)?(?:few_?)?shots?|num_fewshot",
    "system_prompt": r"system_(?:prompt|instruction|message)",
    "dtype": r"(?:torch_|compute_)?dtype",
    "device": r"device|gpu(?:_(?:name|type))?",
    "temperature": r"temperature",
    "do_sample": r"do_sample|sampling",
    "decoding": r"decoding(?:_(?:method|strategy))?",
    "fingerprint": r"(?:data|dataset)_(?:fingerprint|hash|sha256)",
    "overlap": rf"(?:n_|num_)?(?:train_test_|test_train_)?(?:overlap|contaminated|leaked|leakage)(?:_(?:{ITEMS}|count))?",
    "metric": r"metric(?:_name)?",
    "value": r"(?:metric_)?value",
}
"""Field → the names it goes by."""
SAMPLE_FIELDS = {
    "key": r"(?:id|idx|index|row|row_id|sample_id|question_id|doc_id|i)",
    "prompt": r"(?:question|prompt|input|instruction|query|problem)(?:_text)?",
    "text": r"(?:raw_|full_|model_)?(?:generations?|generated|outputs?|responses?|completions?|predictions?)"
    r"(?:_(?:text|answer))?|model_answer|text|pred|raw",
    "correct": r"(?:is_)?correct|exact_?match|em|match",
    "gold": r"(?:gold|reference|expected|target|ground_?truth|correct|true)s?(?:_(?:answers?|values?|text))?|answers?"
    r"|label|gt",
    "answer": r"(?:parsed|extracted|predicted|numeric|final)(?:_(?:answer|value|prediction|number|output))?|pred_value",
    "difference": r"abs(?:olute)?_(?:difference|diff|error)|difference|diff",
    "tokens": rf"(?:n_|num_)?(?:{TOKENS}tokens|tokens_generated|tokens)(?:_count)?",
    "stopped": r"stopped|finished|ended|hit_eos",
    "latency_s": r"latency(?:_(?:s|sec|seconds|ms))?|(?:generation|inference)_time(?:_s)?",
}
METRICS: tuple[tuple[str, NumberKind, bool, bool], ...] = (
    (rf"{MEAN}(?:exact_?match|em|exact)(?:_(?:score|mean|accuracy|{SHARE}))?", "share", True, True),
    (rf"{MEAN}acc(?:uracy)?(?:_norm)?(?:_(?:score|mean|{SHARE}))?", "share", True, True),
    (r"(?:hasans|noans|has_answer|no_answer)_(?:exact(?:_?match)?|em)", "share", False, True),
    (rf"{MEAN}(?:(?:hasans|noans|token|macro|micro)_)?f1(?:_(?:score|mean|macro|micro|{SHARE}))?", "share", False, True),
    (r"(?:score|mean_score|avg_score)", "share", False, True),
    (rf"{MEAN}(?:abs(?:olute)?)_(?:difference|diff|error)(?:_mean)?|mae|{MEAN}(?:difference|diff)", "difference", False, False),
    (r"(?:[a-z]+_)?(?:perplexity|ppl)(?:_[a-z]+)?", "perplexity", False, False),
)
"""Pattern, kind, whether it counts right answers, whether higher is better."""
BOUND = re.compile(r"(.+?)_(?:(?:ci|ci_?95|95_?ci)_?)?(low|lower|lo|high|upper|hi|stderr|se|std_err|standard_error)")

_FIELDS = [(name, re.compile(pattern)) for name, pattern in FIELDS.items()]
_SAMPLES = [(name, re.compile(pattern)) for name, pattern in SAMPLE_FIELDS.items()]


@dataclass(frozen=True, slots=True)
class Metric:
    """What is known of a metric by its name."""

    kind: NumberKind
    countable: bool
    higher_is_better: bool


_METRICS = [(re.compile(pattern), Metric(kind, countable, higher)) for pattern, kind, countable, higher in METRICS]


def field_of(name: str) -> str | None:
    """Return the fact that a column of this plain name holds.

    >>> [field_of(name) for name in ("quantization_method", "avg_latency_s", "peak_vram_gb", "colour")]
    ['method', 'latency_s', 'memory_bytes', None]
    """
    return next((field for field, pattern in _FIELDS if pattern.fullmatch(name)), None)


def sample_field_of(name: str) -> str | None:
    """Return the fact about one answer that a column of this plain name holds."""
    return next((field for field, pattern in _SAMPLES if pattern.fullmatch(name)), None)


def metric_of(name: str) -> Metric | None:
    """Return what kind of number a column of this plain name holds; None where it is no metric.

    >>> metric_of("exact_match").kind, metric_of("mean_abs_difference").kind, metric_of("batch_size")
    ('share', 'difference', None)
    """
    return next((metric for pattern, metric in _METRICS if pattern.fullmatch(name)), None)


def bound_of(name: str) -> tuple[str, str] | None:
    """Return the metric and `low`, `high` or `stderr` that a column of this plain name states.

    >>> bound_of("exact_match_ci_low"), bound_of("acc_stderr")
    (('exact_match', 'low'), ('acc', 'stderr'))
    """
    found = BOUND.fullmatch(name)
    if found is None or metric_of(found[1]) is None:
        return None
    word = found[2]
    return found[1], "low" if word.startswith("lo") else "high" if word in ("high", "upper", "hi") else "stderr"
