"""Does a plugin keep the promises that a run relies on? A suite of tests its author inherits.

    class TestRTN(MethodContract):
        method = "RTN"
        options = {"group_size": 32}

The tests ask the installed plugin through the same door as a run does, on a tiny random model of their own, so a plugin
needs no fixtures and no downloads. A description of the contract in prose would not fail when it is broken.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import pytest

from quantkit.calibration import Calibration
from quantkit.exporting import known_rows
from quantkit.methods import Methods, installed_methods, require_usable
from quantkit.plan import AdapterPlan, MethodInfo, PeftKind, PlanContext, QuantizationPlan, Stage

if TYPE_CHECKING:
    from torch import Tensor

HEAVY = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets")
"""Packages that declaring a method and planning must not import."""
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "plus", "minus", "is", "and", ".", "?"]
ROWS, TOKENS = 3, 24

DECLARE = """
import sys
from quantkit.methods import installed_methods
installed_methods().info({method!r})
heavy = [name for name in {heavy!r} if name in sys.modules]
sys.exit(f"importing the plugins imports {{', '.join(heavy)}}; import them inside the hooks" if heavy else 0)
"""
RELOAD = """
import sys
sys.modules["quantkit"] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
folder, rows, target = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
save_file({"logits": model(input_ids=load_file(rows)["rows"]).logits.detach().float().contiguous()}, target)
"""


class MethodContract:
    """Inherit, set `method`, and pytest runs the contract; the plugin must be installed (its entry point is looked up)."""

    method: ClassVar[str]
    """The method under test."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Options to test it with."""
    other_options: ClassVar[Mapping[str, Any]] = {}
    """For options whose type does not suggest a second valid value (numbers are doubled, booleans turned): one to try."""
    reload_tolerance: ClassVar[float] = 1e-4
    """Largest difference of a logit between the saved model in memory and after a plain reload."""
    merge_tolerance: ClassVar[float] = 1e-4
    """Largest difference of a logit between adapters on their base, in float32, and the merged model."""

    @pytest.fixture
    def methods(self) -> Methods:
        """Every installed method."""
        return installed_methods()

    @pytest.fixture
    def info(self, methods: Methods) -> MethodInfo:
        """What the plugin declared; the tests are skipped where its requirements are not met."""
        info = methods.info(self.method)
        if lacking := methods.missing(self.method):
            pytest.skip(f"{self.method} needs {', '.join(lacking)}")
        if "cpu" not in info.devices:
            pytest.skip(f"{self.method} runs on {', '.join(info.devices)}; the contract is tested on the CPU")
        return info

    @pytest.fixture
    def base(self, tmp_path: Path) -> Path:
        """Folder of a tiny dense base."""
        return build_tiny_base(tmp_path / "Contract-Llama")

    def plan(
        self, methods: Methods, stage: Stage, *, kind: PeftKind | None = None, compute_dtype: str = "bfloat16", **options: Any
    ) -> QuantizationPlan:
        """Return the plugin's plan at this stage; by default with LoRa adapters where it carries them."""
        kinds = methods.info(self.method).adapters
        adapter = AdapterPlan(kind=kind or ("LoRa" if "LoRa" in kinds else "NoPeft"), r=4, lora_alpha=8)
        context = PlanContext(
            stage=stage,
            adapter=adapter if stage is Stage.BASE else AdapterPlan(kind="NoPeft"),
            compute_dtype=compute_dtype,
            model_config=tiny_base_config(),
        )
        return methods.plan(self.method, {**self.options, **options}, context)

    def test_the_method_is_declared_without_importing_anything_heavy(self, info: MethodInfo) -> None:
        script = DECLARE.format(method=self.method, heavy=HEAVY)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert info.summary

    def test_the_method_is_usable_where_its_requirements_are_met(self, methods: Methods, info: MethodInfo) -> None:
        require_usable(methods, [info.name], "cpu")

    def test_a_plan_is_plain_data(self, methods: Methods, info: MethodInfo) -> None:
        for stage in info.stages:
            plan = self.plan(methods, stage)
            assert QuantizationPlan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False))) == plan

    def test_the_same_settings_give_the_same_plan(self, methods: Methods, info: MethodInfo) -> None:
        for stage in info.stages:
            assert self.plan(methods, stage) == self.plan(methods, stage)

    def test_no_option_is_accepted_and_ignored(self, methods: Methods, info: MethodInfo) -> None:
        given = methods.options(self.method, self.options)
        for option in fields(info.options):
            other = self.other_options.get(option.name, _another(info.options, option.name, getattr(given, option.name)))
            assert other is not None, f"cannot think of another value for {option.name}; name one in other_options"
            for stage in info.stages:
                changed = self.plan(methods, stage, **{option.name: other})
                assert changed != self.plan(methods, stage), f"{option.name}={other!r} does not reach the plan"

    def test_what_is_in_memory_is_what_the_plan_says(self, methods: Methods, info: MethodInfo, base: Path) -> None:
        from quantkit.measure import check_model, loaded_spec

        for stage in info.stages:
            plan = self.plan(methods, stage)
            check_model(load(methods, plan, base), loaded_spec(plan))

    def test_every_adapter_parameter_learns(self, methods: Methods, info: MethodInfo, base: Path) -> None:
        for kind in self.adapter_kinds(info):
            plan = self.plan(methods, Stage.BASE, kind=kind)
            model = load_with_adapter(methods, plan, base)
            logits(model)  # an evaluation before training must not harm it
            faults = train(model, steps=1)
            assert not faults, f"{plan.adapter.kind} on {self.method}: {len(faults)} faults, e.g. {'; '.join(faults[:3])}"

    def test_a_merged_model_gives_the_logits_of_adapter_and_base(self, methods: Methods, info: MethodInfo, base: Path) -> None:
        from quantkit.layers import linear_layers

        for kind in self.adapter_kinds(info):
            plan = self.plan(methods, Stage.BASE, kind=kind, compute_dtype="float32")
            untrained = logits(load(methods, plan, base))
            model = load_with_adapter(methods, plan, base)
            train(model, steps=3)
            adapted = logits(model)
            merged = methods.post_train_merge(plan, model)
            assert not hasattr(merged, "peft_config"), f"{kind}: the merged model still carries adapters"
            assert all(layer.weight.is_floating_point() for layer in linear_layers(merged).values())
            learnt, lost = _gap(untrained, adapted), _gap(adapted, logits(merged))
            assert learnt > 5 * self.merge_tolerance, f"{kind}: training changed logits by {learnt:.2g} only"
            assert lost <= self.merge_tolerance, f"{kind}: merging changed logits by {lost:.2g}"

    def test_a_saved_model_loads_without_quantkit_and_gives_the_same_logits(
        self, methods: Methods, info: MethodInfo, base: Path, tmp_path: Path
    ) -> None:
        for stage in info.stages:
            model = load(methods, self.plan(methods, stage), base)
            before = logits(model)
            model.save_pretrained(tmp_path / stage)
            after = reload_logits(tmp_path / stage, tmp_path / "logits")
            assert _gap(before, after) <= self.reload_tolerance, f"stage {stage}: plain transformers computes something else"

    def test_what_it_exports_is_what_it_declares(self, methods: Methods, info: MethodInfo, base: Path, tmp_path: Path) -> None:
        rows = known_rows(methods)
        assert not [reason for reason in rows.broken if reason.startswith(str(methods.source(self.method)))]
        for target, answer in rows.rewritten_by(info.name).items():
            plan = self.plan(methods, Stage.TRAINED if Stage.TRAINED in info.stages else Stage.BASE)
            before = logits(model := load(methods, plan, base))
            methods.export_model(plan, model, target).save_pretrained(folder := tmp_path / target)
            gap = _gap(before, reload_logits(folder, tmp_path / "logits"))
            assert answer.outcome != "exact" or gap <= self.reload_tolerance, f"{target}: exact, but logits moved by {gap:.2g}"

    def adapter_kinds(self, info: MethodInfo) -> list[PeftKind]:
        """Return the PEFT kinds to train; the test is skipped for a method that works on finished models only."""
        if Stage.BASE not in info.stages:
            pytest.skip(f"{self.method} works on finished models; no adapters are trained on it")
        return [kind for kind in ("LoRa", "DoRa", "VeRa") if kind in info.adapters]


def load(methods: Methods, plan: QuantizationPlan, base: Path) -> Any:
    """Return the base as the plan wants it, quantized with random tokens where the method asks for calibration data."""
    from quantkit.modeling import load_base

    calibration = None
    if methods.info(plan.method).calibration != "none":
        calibration = Calibration(tuple(tuple(row.tolist()) for row in sample_rows()), "random rows of the contract")
    return load_base(str(base), plan=plan, methods=methods, device="cpu", calibration=calibration)


def load_with_adapter(methods: Methods, plan: QuantizationPlan, base: Path) -> Any:
    """Return a `PeftModel` ready to train."""
    from quantkit.adapters import attach_adapter

    return attach_adapter(methods.prepare_model(plan, load(methods, plan, base)), plan.adapter, seed=0)


def train(model: Any, *, steps: int) -> list[str]:
    """Take a few large steps on sample rows; return what is wrong with the first step's gradients, in sentences."""
    import torch

    from quantkit.training.guards import gradient_faults

    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    faults: list[str] = []
    for step in range(steps):
        model(input_ids=sample_rows(), labels=sample_rows()).loss.backward()
        faults = gradient_faults(model) if step == 0 else faults
        optimizer.step()
        optimizer.zero_grad()
    return faults


def logits(model: Any) -> "Tensor":
    """Return the model's float32 logits `[rows, tokens, vocabulary]` on sample rows, as inference computes them."""
    import torch

    model.eval()
    with torch.no_grad():
        found: Tensor = model(input_ids=sample_rows()).logits.float()
    return found


def reload_logits(folder: Path, scratch: Path) -> "Tensor":
    """Return a folder's logits by plain transformers in a process without quantkit; of GPTQ and AWQ folders by our reader."""
    from safetensors.torch import load_file, save_file

    from quantkit.backends.packed_checkpoints import is_packed_checkpoint, load_packed_checkpoint

    if is_packed_checkpoint(folder):
        return logits(load_packed_checkpoint(folder, dtype="auto", device="cpu", trust_remote_code=False)[0])
    scratch.mkdir(exist_ok=True)
    save_file({"rows": sample_rows()}, scratch / "rows.safetensors")
    names = [str(folder), str(scratch / "rows.safetensors"), str(scratch / "logits.safetensors")]
    done = subprocess.run([sys.executable, "-c", RELOAD, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(names[-1])["logits"]


def sample_rows() -> "Tensor":
    """Return token ids `[rows, tokens]`, always the same."""
    import torch

    return torch.randint(3, len(WORDS) + 3, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def tiny_base_config() -> dict[str, Any]:
    """Return the settings of the tiny base, as `LlamaConfig` takes them."""
    return {
        "vocab_size": 64,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.08,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def build_tiny_base(folder: Path) -> Path:
    """Write a random Llama of 0.4 M parameters in bfloat16 with a word tokenizer, and return its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**tiny_base_config())).to(torch.bfloat16).save_pretrained(folder)
    return folder


def _gap(first: "Tensor", second: "Tensor") -> float:
    return float((first - second).abs().max())


def _another(cls: type[Any], name: str, value: Any) -> Any:
    """Return a second valid value of an option, judged by its type; None where the type does not tell."""
    hint = get_type_hints(cls)[name]
    if get_origin(hint) is Literal:
        return next((choice for choice in get_args(hint) if choice != value), None)
    if isinstance(value, bool):
        return not value
    return value * 2 if isinstance(value, int | float) and value > 0 else None
