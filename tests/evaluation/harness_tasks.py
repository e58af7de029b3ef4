"""Tasks of lm-eval as a user would keep them, over rows that lie beside them."""

import json
from pathlib import Path
from typing import Any

ROWS = [
    {"question": f"Tom has {a} coins and finds {b} more. How many?", "options": options, "gold": gold, "answer": options[gold]}
    for gold, (a, b) in zip([0, 1, 1, 2, 0, 1, 3, 1, 2, 1, 0, 1], [(n, n + 3) for n in range(2, 14)], strict=True)
    for options in [[str(2 * a + 3 + at - gold) + (" coins" if at == 2 else "") for at in range(4)]]
]
CHOICE = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
metadata: {{version: 3.0}}
"""
WRITTEN = """
task: local_written
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: generate_until
doc_to_text: "<|im_start|>user\\n{{{{question}}}}<|im_end|>\\n<|im_start|>assistant\\n"
doc_to_target: answer
generation_kwargs: {{until: ["="], max_gen_toks: 12, do_sample: false}}
filter_list: [{{name: number, filter: [{{function: regex, regex_pattern: "(\\\\d+)"}}, {{function: take_first}}]}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
num_fewshot: 0
"""
ROLLING = """
task: local_rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}]
"""
GROUP = "group: local_group\ntask: [local_choice, local_second]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"


def write_definitions(folder: Path) -> Path:
    """Fill a folder with definitions of tasks, and their rows."""
    for name, rows in (("first", ROWS), ("second", ROWS[:5])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"data": folder / "first.jsonl", "cache": folder / "cache"}
    (folder / "choice.yaml").write_text(CHOICE.format(name="local_choice", **files))
    (folder / "second.yaml").write_text(CHOICE.format(name="local_second", **files | {"data": folder / "second.jsonl"}))
    (folder / "written.yaml").write_text(WRITTEN.format(**files))
    (folder / "rolling.yaml").write_text(ROLLING.format(**files))
    (folder / "group.yaml").write_text(GROUP)
    return folder


def load_tiny(tiny_model: Path) -> tuple[Any, Any]:
    """Return the tiny model, in float32, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(tiny_model)
