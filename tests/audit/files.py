"""Result files with known faults, and without: written here, in the layouts that the three kinds of evaluation use."""

import csv
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SILENT = "Qwen3-0.6B-openmath_SFT_LoRa256_QLORA_w4_headbf16"
FLUENT = "Qwen3-0.6B-base"
QUANTIZED = (
    "Qwen3-0.6B-openmath_SFT_LoRa256_QLORA_w4_headbf16",
    "Qwen3-0.6B-openmath_SFT_LoRa64_BNB4BIT_w4_headbf16",
    "Qwen3-0.6B-openmath_SFT_DoRa64_QLORA_w4_headbf16",
)


def write_json(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def math_summary() -> list[dict[str, Any]]:
    """The table of the first story: the silenced model leads by difference and by latency."""
    common = {
        "dataset": "openmath",
        "num_samples": 50,
        "batch_size": 1,
        "max_new_tokens": 512,
        "quantization_method": "NoQuant",
    }
    return [
        {"model_name": SILENT, "mean_abs_difference": 9.0, "avg_latency_s": 0.61, "peak_vram_gb": 2.1, **common},
        {"model_name": FLUENT, "mean_abs_difference": 1258.5, "avg_latency_s": 13.8, "peak_vram_gb": 2.0, **common},
    ]


def math_metrics(*, model: str = SILENT, silent: int = 45) -> dict[str, Any]:
    """One model's metrics with its raw generations, 45 of 50 of them empty."""
    rows, chance = [], random.Random(0)
    for index in range(50):
        gold, said = float(chance.randint(10, 90)), index >= silent
        rows.append(
            {
                "question": f"What is {index} plus {gold - index}?",
                "ground_truth": gold,
                "generated_text": f"The sum of these two numbers is \\boxed{{{gold + 9.0}}}." if said else "",
                "parsed_answer": gold + 9.0 if said else None,
                "abs_difference": 9.0 if said else None,
                "tokens_generated": 14 if said else 0,
            }
        )
    return {
        "model_name": model,
        "dataset": "openmath",
        "quantization": {"method": "NoQuant", "weights_bits": 16},
        "metrics": {"mean_abs_difference": 9.0, "latency": {"mean_s": 0.61}},
        "hardware_info": {"vram_peaks": {"overall_max_reserved_gb": 2.1}},
        "predictions": rows,
    }


def squad_summary() -> list[dict[str, Any]]:
    """The table of the second story: exact match of at most 40.0 where `!!!!` gets 42.0."""
    scores = {"Qwen3-0.6B-base": 40.0, SILENT: 38.0, QUANTIZED[1]: 22.0}
    return [{"model": name, "dataset": "squad_v2", "n": 50, "exact_match": score, "seed": 0} for name, score in scores.items()]


def squad_metrics(right: int = 20) -> dict[str, Any]:
    """One model's answers on 50 questions, 21 of which have no answer."""
    rows = []
    for index in range(50):
        golds = [] if index < 21 else [f"the {index}th city"]
        correct = index >= 50 - right
        rows.append(
            {
                "id": f"q{index}",
                "question": f"Which city is number {index}?",
                "answers": {"text": golds},
                "prediction": golds[0] if correct else f"perhaps some village {index}",
                "correct": correct,
            }
        )
    return {"model": "Qwen3-0.6B-base", "dataset": "squad_v2", "exact_match": 100 * right / 50, "seed": 0, "samples": rows}


def labels_summary() -> list[dict[str, Any]]:
    """The table of the third story: every 4-bit artifact evaluated as unquantized, in the memory of 16-bit weights."""
    rows = [
        {"model": name, "dataset": "boolq", "n": 50, "accuracy": 0.5 + index / 50, "quant_method": "NoQuant", "vram_gb": 2.0}
        for index, name in enumerate(QUANTIZED)
    ]
    large = {"dataset": "boolq", "n": 50, "accuracy": 0.7}
    return [
        *rows,
        {"model": "Big-23B-base", "quant_method": "NoQuant", "vram_gb": 46.0, **large},
        {"model": "Big-23B-boolq_SFT_LoRa64_QLORA_w4_headbf16", "quant_method": "QLORA", "vram_gb": 46.0, **large},
    ]


def merge_summary() -> list[dict[str, Any]]:
    """The fourth story: merged out of repacked 4-bit weights."""
    name = "SmolLM2-135M-openmath_SFT_LoRa16_QLORA_w4_headbf16"
    common = {"dataset": "openmath", "n": 60, "seed": 0}
    return [
        {"model": name, "perplexity": 8.9, "perplexity_low": 8.1, "perplexity_high": 9.8, **common},
        {"model": f"{name}_mergedbf16", "perplexity": 1.6e10, "perplexity_low": 1e10, "perplexity_high": 2e10, **common},
    ]


def healthy_study() -> dict[str, Any]:
    """Metrics of two models that say all it takes to judge them."""
    runs = {}
    for name, right, method, bits in (
        ("Base-1B", 30, "NoQuant", 16),
        ("Base-1B-arc_SFT_LoRa16_GPTQ_w4_g64_headbf16", 46, "GPTQ", 4),
    ):
        chance = random.Random(right)
        rows = []
        for index in range(60):
            gold = "ABCD"[index % 4]
            correct = (index * 7) % 60 < right
            text = gold if correct else "ABCD"[(index + 1 + chance.randrange(3)) % 4]
            rows.append(
                {"id": index, "question": f"Question {index}?", "gold": gold, "output": f"It is {text}.", "parsed": text}
                | {"correct": correct, "generated_tokens": 5}
            )
        share = right / 60
        runs[name] = {
            "dataset": "arc",
            "quantization": {"method": method, "weights_bits": bits},
            "metrics": {"accuracy": share, "accuracy_stderr": math.sqrt(share * (1 - share) / 59), "latency_s": 0.5},
            "settings": {"seed": 0, "decoding": "greedy", "batch_size": 8, "max_new_tokens": 32},
            "peak_vram_gb": 2.5 if bits == 16 else 1.3,
            "answers": rows,
        }
    return {"models": runs}


def lm_eval_results(model: str = "org/Model-1B", *, right: int = 400, n: int = 1000, **changes: Any) -> dict[str, Any]:
    """A results file in the layout of lm-eval 0.4."""
    share = right / n
    norm = (right + 20) / n

    def stderr(value: float) -> float:
        return math.sqrt(value * (1 - value) / (n - 1))

    data: dict[str, Any] = {
        "results": {
            "arc_easy": {
                "alias": "arc_easy",
                "acc,none": share,
                "acc_stderr,none": stderr(share),
                "acc_norm,none": norm,
                "acc_norm_stderr,none": stderr(norm),
            }
        },
        "group_subtasks": {"arc_easy": []},
        "configs": {"arc_easy": {"task": "arc_easy", "output_type": "multiple_choice", "num_fewshot": 0}},
        "versions": {"arc_easy": 1.0},
        "n-shot": {"arc_easy": 0},
        "higher_is_better": {"arc_easy": {"acc": True, "acc_norm": True}},
        "n-samples": {"arc_easy": {"original": n, "effective": n}},
        "config": {
            "model": "hf",
            "model_args": f"pretrained={model},dtype=bfloat16",
            "model_num_parameters": 1_000_000_000,
            "model_dtype": "torch.bfloat16",
            "batch_size": "16",
            "limit": None,
            "random_seed": 0,
        },
        "model_name": model,
        "model_source": "hf",
        "chat_template": None,
        "chat_template_sha": None,
        "system_instruction": None,
        "lm_eval_version": "0.4.13",
    }
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) and key == "config" else value
    return data


def lm_eval_samples(right: int, n: int) -> list[dict[str, Any]]:
    """Samples of the same run, one line per question."""
    return [
        {
            "doc_id": index,
            "doc": {"question": f"Question {index}?"},
            "target": str(index % 4),
            "resps": [[["-1.5", "False"]], [["-2.5", "False"]]],
            "filtered_resps": [["-1.5", "False"], ["-2.5", "False"]],
            "filter": "none",
            "doc_hash": f"{index:08x}",
            "acc": 1.0 if index < right else 0.0,
            "acc_norm": 1.0 if index < right + 20 else 0.0,
        }
        for index in range(n)
    ]


def quantkit_result(
    *, right: int = 45, name: str = "Tiny-sums_SFT_LoRa4_QLORA_w4_headbf16", artifact: str = "cd" * 32, **changes: Any
) -> dict[str, Any]:
    """A filed result of quantkit, whole and healthy: 60 sums, each answered in its own words."""
    from quantkit.evaluation.results import Cost, RowResult, TaskResult
    from quantkit.evaluation.statistics import Floor, share_score
    from quantkit.spec import QuantizationSpec

    rows = []
    for index in range(60):
        gold = str(index + 10)
        answer = gold if index < right else str(index + 11)
        text = f"Adding them up gives \\boxed{{{answer}}}."
        rows.append(
            RowResult(row=index, gold=gold, answer=answer, correct=index < right, stopped=True, text=text, generated_tokens=15)
        )
    floors = [Floor(name="empty", value=0.0), Floor(name="majority", value=1 / 60), Floor(name="sum", value=0.2)]
    rates = {"parsed_rate": 60, "empty_rate": 0, "repetition_rate": 0, "stop_rate": 60}
    result = TaskResult(
        task="sums",
        kind="numeric",
        metric="exact_match",
        source="sums.jsonl",
        data_fingerprint="ab" * 32,
        n=60,
        seed=0,
        settings={"batch_size": 16, "max_new_tokens": 48, "decoding": "greedy", "dtype": "bfloat16", "system_prompt": None},
        scores={"exact_match": share_score(right, 60, floors=floors)}
        | {rate: share_score(count, 60) for rate, count in rates.items()},
        cost=Cost(generated_tokens=900, generation_s=9.0, tokens_per_s=100.0, perplexity_s=1.0, peak_rss_bytes=800 << 20),
        rows=rows,
    )
    spec = QuantizationSpec(method="QLORA", weights_bits=4, weights_dtype="nf4", format="bitsandbytes")
    about = {"name": name, "artifact": artifact, "kind": "adapter", "quantization": spec.to_dict(), "bits_per_weight": 5.1}
    return {**result.to_dict(), "artifact": about, **changes}


def changed(data: Any, place: str, value: Any) -> Any:
    """Return a deep copy with the value at a dotted place replaced; `del` removes it."""
    copy = json.loads(json.dumps(data))
    *way, last = place.split(".")
    node = copy
    for key in way:
        node = node[int(key)] if isinstance(node, list) else node[key]
    if value == "del":
        del node[last]
    else:
        node[int(last) if isinstance(node, list) else last] = value
    return copy


def changed_in_place(data: Any, way: Sequence[str | int], value: Any) -> None:
    """Replace the value at a way of keys and positions."""
    *before, last = way
    node = data
    for key in before:
        node = node[key]
    node[last] = value
