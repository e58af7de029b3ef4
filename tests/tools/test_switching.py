"""Adapters of one base share it in memory, and say exactly what they say alone, merged or kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError, VerificationError
from quantkit_registry.store import Registry
from quantkit_tools.evaluation.flags import Flags
from quantkit_tools.evaluation.groups import SHARED_LOAD, evaluate_group, groups_of
from tests.tools.conftest import kept_adapter

QUICK = ["--limit", 3, "--max-new-tokens", 8]


@pytest.fixture(scope="module")
def second(tiny_model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another QLORA adapter of the same base, on other layers."""
    more = ["--target-modules", "q_proj", "v_proj"]
    return kept_adapter(tiny_model, rows, tmp_path_factory.mktemp("second"), *more, steps=3)


def _outputs(artifact: dict[str, Any]) -> list[Any]:
    result = artifact["results"][0]
    return [[row["text"] for row in result["rows"]], result["scores"]["perplexity_response"]["value"]]


def test_kept_swapped_and_merged_give_the_same_recorded_outputs(
    kept: Path, second: Path, held_out: Path, read_json: Any, tmp_path: Path
) -> None:
    merged = Path(read_json("merge", kept, "--dst", tmp_path, "--save-dtype", "float32")["artifact"])
    flags = ["--data", f"openmath:{held_out}", *QUICK, "--dtype", "float32", "--registry", tmp_path / "r"]
    alone = {path: read_json("evaluate", path, *flags)["artifacts"][0] for path in (kept, second, merged)}
    swapped = read_json("evaluate", kept, merged, second, *flags)["artifacts"]
    assert [item["path"] for item in swapped] == [str(kept), str(merged), str(second)]
    for item, path in zip(swapped, (kept, merged, second), strict=True):
        assert _outputs(item) == _outputs(alone[path])
    texts, perplexity = _outputs(alone[kept])
    assert texts == _outputs(alone[merged])[0]
    assert perplexity == pytest.approx(_outputs(alone[merged])[1], rel=1e-5)
    assert perplexity != pytest.approx(_outputs(alone[second])[1], rel=1e-3)
    first = {item["path"]: item["memory"]["stages"][0] for item in swapped}
    assert first[str(kept)]["stage"] == "load"
    assert first[str(second)]["stage"] == SHARED_LOAD
    filed = Registry(tmp_path / "r").results(swapped[2]["artifact"])
    assert [row["text"] for row in filed["openmath-test"]["rows"]] == _outputs(alone[second])[0]


def test_only_adapters_of_one_base_and_recipe_share_a_process(
    kept: Path, second: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(second, tmp_path / "other"))
    record = json.loads((other / "quantization_metadata.json").read_text())
    record["recipe"]["options"] = {"double_quant": False}
    (other / "quantization_metadata.json").write_text(json.dumps(record))
    broken = Path(shutil.copytree(second, tmp_path / "broken"))
    (broken / "adapter_config.json").write_text("{")
    foreign = []
    for name in ("one", "two"):
        foreign.append(str(tmp_path / name))
        (tmp_path / name).mkdir()
        shutil.copy(kept / "adapter_config.json", tmp_path / name)
    paths = [str(path) for path in (kept, tiny_model, other, second, broken, *foreign)]
    alone = [(path,) for path in (str(tiny_model), str(other))]
    assert groups_of(Flags(paths=tuple(paths))) == [
        (str(kept), str(second)), *alone, (str(broken),), (foreign[0],), (foreign[1],)
    ]  # fmt: skip
    assert groups_of(Flags(paths=tuple(foreign), method="QLORA")) == [tuple(foreign)]


def test_an_adapter_that_fails_does_not_take_the_others_with_it(
    kept: Path, second: Path, held_out: Path, tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(second, tmp_path / "damaged"))
    (damaged / "adapter_model.safetensors").write_bytes(b"x")
    paths = tuple(str(path) for path in (kept, damaged, second))
    flags = Flags(paths=paths, data=f"openmath:{held_out}", limit=2, max_new_tokens=2, registry=str(tmp_path / "r"))
    done, failed = evaluate_group(flags, paths)
    assert [item.path for item in done] == [str(kept), str(second)]
    assert (failed[0]["path"], failed[0]["exit_code"]) == (str(damaged), 2)
    assert "adapter_model.safetensors" in failed[0]["error"]


@pytest.fixture(scope="module")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Two random adapters of each kind on the tiny model."""
    import torch
    from transformers import AutoModelForCausalLM

    from quantkit.adapters import attach_adapter, is_up_projection
    from quantkit.plan import AdapterPlan

    root = tmp_path_factory.mktemp("kinds")
    made: dict[str, list[Path]] = {}
    for kind in ("LoRa", "DoRa", "VeRa"):
        for seed in (1, 2):
            plan = AdapterPlan(kind=kind, r=4, lora_alpha=8, target_modules=("q_proj", "down_proj"))
            model = attach_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), plan, 7)
            torch.manual_seed(seed)
            for name, parameter in model.named_parameters():
                if is_up_projection(name):
                    torch.nn.init.normal_(parameter, std=0.1)
            made.setdefault(kind, []).append(root / f"{kind}{seed}")
            model.save_pretrained(root / f"{kind}{seed}")
    return made


@pytest.mark.parametrize("kind", ["LoRa", "DoRa", "VeRa"])
def test_what_the_active_adapter_computes_is_what_it_computes_alone(
    kind: str, adapters: dict[str, list[Path]], tiny_model: Path
) -> None:
    import torch

    from quantkit.fidelity import probe_logits
    from quantkit.methods import installed_methods
    from quantkit.modeling import ModelSource, load_source
    from quantkit.spec import QuantizationSpec
    from quantkit.switching import add_adapter, use_adapter

    def load(path: Path) -> Any:
        spec = QuantizationSpec.dense("float32")
        source = ModelSource(path=str(path), kind="adapter", base=str(tiny_model), spec=spec)
        return load_source(source, installed_methods(), device="cpu")

    rows = [[1, 40, 50, 60, 70, 80]]
    first, second = adapters[kind]
    alone = [probe_logits(load(path), rows) for path in (first, second)]
    shared = load(first)
    assert torch.equal(probe_logits(shared, rows), alone[0])
    name = add_adapter(shared, str(second))
    assert torch.equal(probe_logits(use_adapter(shared, name), rows), alone[1])
    assert torch.equal(probe_logits(use_adapter(shared, "default"), rows), alone[0])
    assert not torch.equal(alone[0], alone[1])
    assert not any(parameter.requires_grad for parameter in shared.parameters())


def test_adapters_that_do_not_fit_are_refused_and_leave_the_others_alone(
    adapters: dict[str, list[Path]], tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from quantkit.methods import installed_methods
    from quantkit.modeling import ModelSource, load_source
    from quantkit.spec import QuantizationSpec
    from quantkit.switching import add_adapter

    first, second = adapters["LoRa"]
    source = ModelSource(path=str(first), kind="adapter", base=str(tiny_model), spec=QuantizationSpec.dense("float32"))
    model = load_source(source, installed_methods(), device="cpu")
    with pytest.raises(UsageError, match="not an adapter folder"):
        add_adapter(model, str(tiny_model))
    renamed = Path(shutil.copytree(second, tmp_path / "renamed"))
    tensors = load_file(renamed / "adapter_model.safetensors")
    save_file({key.replace("q_proj", "k_proj"): value for key, value in tensors.items()}, renamed / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match="do not fit its configuration and base"):
        add_adapter(model, str(renamed))
    assert list(model.peft_config) == ["default"]
