"""What runs in a process of its own on our side: a training run by quantkit, the float64 reference, and the matrix products.

    python benchmarks/training_worker.py JOB.json …

Several jobs may share a process (the short form does that, to import once); peaks of memory then mean nothing.
"""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peers.steps import NEVER_CLIPPED, StepClock, set_adapters, write_answer, write_gradients


def main() -> None:
    """Do the jobs in the files that the command line names."""
    for file in sys.argv[1:]:
        job = json.loads(Path(file).read_text())
        write_answer(
            job["answer"], {"train": train_job, "reference": reference_job, "products": products_job}[job["kind"]](job)
        )


def train_job(job: dict[str, Any]) -> dict[str, Any]:
    """Train by quantkit, as `quantkit train` does, on the job's batches in their order."""
    from quantkit.config import RunConfig
    from quantkit.data import EncodedRow, PreparedData
    from quantkit.modeling import load_tokenizer

    model, plan = adapted(job)  # first, as the verb does: what loads quantized weights is then imported lightly
    from quantkit.training import loop, order, train

    if plan.adapter.kind == "LoRa":  # others start as they do
        set_adapters(model, job["adapters"])
    rows = [row for batch in job["batches"] for row in batch]
    encoded = [EncodedRow(row["input_ids"], row["labels"], number) for number, row in enumerate(rows, start=1)]
    clock = StepClock(job.get("gradients"))

    class Watched(loop.StepWatch):
        """Tells the clock what happens."""

        def on_train_begin(self, *arguments: Any, **named: Any) -> None:
            super().on_train_begin(*arguments, **named)
            clock.start()

        def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
            clock.gradients(model)

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            super().on_step_end(*arguments, **named)
            clock.step()

    class AsHanded(order.RowOrder):
        """Rows as they come."""

        def __iter__(self) -> Any:
            return iter(range(len(self)))

    kept, loop.StepWatch = loop.StepWatch, Watched  # type: ignore[misc]
    own, order.RowOrder = order.RowOrder, AsHanded  # type: ignore[misc]
    try:
        result = train(
            model,
            PreparedData("rows", encoded, [], "", None),  # type: ignore[arg-type]  # it is not asked for
            RunConfig(
                model_name_or_path=job["model"],
                dataset_name="rows",
                quant_method=plan.method,
                peft_config=plan.adapter.kind,
                lora_r=job["lora_r"],
                target_modules=(job["adapted_layers"],),
                max_steps=len(job["batches"]),
                max_length=job["max_length"],
                per_device_train_batch_size=len(job["batches"][0]),
                learning_rate=job["learning_rate"],
                lr_scheduler_type="constant",
                max_grad_norm=NEVER_CLIPPED,
                seed=job["seed"],
                device="cpu",
                overwrite=True,  # the checkpoint of the case before
                **job["changes"],
            ),
            plan,
            tokenizer=load_tokenizer(job["model"]),
            checkpoints=Path(job["scratch"]),
            device="cpu",
        )
    finally:
        loop.StepWatch, order.RowOrder = kept, own  # type: ignore[misc]
    facts = {name: getattr(result, name) for name in ("arithmetic_dtype", "padding_free", "prefix_sharing")}
    return clock.found() | {"losses": result.losses} | facts


def reference_job(job: dict[str, Any]) -> dict[str, Any]:
    """Write the adapters that all start from, and loss and gradients of the first batch in float64, row by row, unpadded.

    Weights are what their 4 bits stand for, unrounded. Also says which layers have adapters, and counts what the formula of
    useful arithmetic needs.
    """
    import torch
    from safetensors.torch import save_file

    from quantkit.layers import bare_model

    model, _ = adapted(job)
    chance = torch.Generator().manual_seed(job["seed"])
    trained = {name: item for name, item in model.named_parameters() if item.requires_grad}
    for item in trained.values():  # B away from zero, else A would have no gradient to compare
        item.data = torch.randn(item.shape, generator=chance) * 0.02
    save_file({name: item.data.contiguous() for name, item in trained.items()}, job["adapters"])
    prefix, suffix = "base_model.model.", ".lora_A.default.weight"
    targets = [name.removeprefix(prefix).removesuffix(suffix) for name in trained if name.endswith(suffix)]
    base, frozen = bare_model(model), with_dense_layers(model)
    model.double().train()
    rows = job["batches"][0]
    count = sum(label != -100 for row in rows for label in row["labels"][1:])
    total = 0.0
    with float32_is_float64():
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
    write_gradients(model, job["gradients"])
    config = base.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        "loss": total,
        "targets": targets,
        "frozen_parameters": frozen,
        "adapter_parameters": sum(item.numel() for item in trained.values()),
        "head_parameters": base.get_output_embeddings().weight.numel(),
        "attention_width": width * config.num_attention_heads,
        "layers": config.num_hidden_layers,
        "shape": [config.hidden_size, config.intermediate_size],
    }


def with_dense_layers(model: Any) -> int:
    """Put dense layers in place of 4-bit ones; return how many weights they have."""
    import torch
    from bitsandbytes.functional import dequantize_4bit

    found = 0
    for owner in list(model.modules()):
        for name, layer in list(owner.named_children()):
            state = getattr(getattr(layer, "weight", None), "quant_state", None)
            if state is None or hasattr(layer, "base_layer"):
                continue
            state.dtype = torch.float32
            dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            dense.weight = torch.nn.Parameter(dequantize_4bit(layer.weight.data, state), requires_grad=False)
            if layer.bias is not None:
                dense.bias = torch.nn.Parameter(layer.bias.data, requires_grad=False)
            setattr(owner, name, dense)
            found += dense.weight.numel()
    return found


@contextmanager
def float32_is_float64() -> Iterator[None]:
    """Let models compute in float64 where their code says float32: norms and rotations do."""
    import torch

    kept, cast = torch.float32, torch.Tensor.float
    torch.float32, torch.Tensor.float = torch.float64, torch.Tensor.double  # type: ignore[misc,method-assign]
    try:
        yield
    finally:
        torch.float32, torch.Tensor.float = kept, cast  # type: ignore[misc,method-assign]


def products_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return the GFLOP per processor second of the model's largest matrix product, for each data type: the fastest of many."""
    import torch

    width, inner = job["shape"]
    found = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        left, right = torch.ones(job["tokens"], width, dtype=dtype), torch.ones(inner, width, dtype=dtype)
        times, until = [], time.process_time() + job["seconds"]
        while len(times) < 4 or time.process_time() < until:
            start = time.process_time()
            torch.nn.functional.linear(left, right)
            times.append(time.process_time() - start)
        found[str(dtype).removeprefix("torch.")] = 2e-9 * job["tokens"] * width * inner / min(times[1:])
    return found


def adapted(job: dict[str, Any]) -> tuple[Any, Any]:
    """Return the 4-bit base with adapters, and its plan."""
    from quantkit import AdapterPlan, PlanContext
    from quantkit.methods import installed_methods
    from quantkit.modeling import attach_adapter, load_base

    methods = installed_methods()
    kind, rank = job.get("peft", "LoRa"), job["lora_r"]
    adapter = AdapterPlan(kind=kind, r=rank, lora_alpha=2 * rank, target_modules=(job["adapted_layers"],))
    context = PlanContext(adapter=adapter, compute_dtype="float32", dense_dtype="bfloat16")
    plan = methods.plan("QLORA", {}, context) if kind == "LoRa" else methods.plan("BNB4BIT", {"double_quant": True}, context)
    model = load_base(job["model"], plan=plan, methods=methods, device="cpu")
    return attach_adapter(methods.prepare_model(plan, model), plan.adapter, job["seed"]), plan


if __name__ == "__main__":
    main()
