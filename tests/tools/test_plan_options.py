"""What `quantkit plan` takes beside a model: options of some methods, and the rate of runs that were."""

import json
from types import SimpleNamespace

import pytest

from quantkit import console
from quantkit.forecasting.bundled import DESCRIBED
from quantkit_tools.plan import main
from tests.tools.plans import answered


@pytest.fixture(autouse=True)
def nothing_learnt(monkeypatch, tmp_path):
    monkeypatch.setenv("QUANTKIT_REGISTRY", str(tmp_path / "registry"))
    yield
    console.use_stdout()


def test_an_option_that_some_methods_know_applies_to_those_and_is_named_as_not_applying_to_the_others(capsys, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(DESCRIBED["meta-llama/Llama-3.2-3B"] | {"hidden_size": 3136}))  # 64 divides it, 128 does not
    before, after = (answered(capsys, str(file), *flags) for flags in ([], ["--group-size", "64", "--no-symmetric"]))
    filled = [
        {(cell["method"], cell["adapter"]) for cell in data["cells"] if cell["forecast"] is not None}
        for data in (before, after)
    ]
    assert {("GPTQ", "LoRa"), ("RTN", "VeRa")} <= filled[1] - filled[0]
    assert filled[0] < filled[1]
    assert before["options"] == []
    told = {option["name"]: option for option in after["options"]}
    assert (told["group_size"]["value"], told["symmetric"]["value"]) == (64, False)
    assert "GPTQ" in told["group_size"]["known_to"]
    assert "NoQuant" in told["group_size"]["unknown_to"]
    console.use_stdout()
    assert main([str(file), "--group-size", "64"]) == 0
    said = capsys.readouterr().out
    assert "group_size 64 applies to AWQ, " in said
    assert ", not to BNB4BIT, " in said
    found = answered(capsys, str(file), "--group-size", "64", "--fit", "300GiB")
    assert all("group-size" not in fit["command"] for fit in found["fits"] if " NoQuant " in fit["command"])
    own = answered(capsys, str(file), "--quant-method", "GPTQ", "--group-size", "64", "--no-symmetric", "--fit", "300GiB")
    assert own["fits"][0]["command"].endswith(" --group-size 64 --no-symmetric")


@pytest.mark.parametrize(("how", "stream"), [([], "out"), (["--no-merge-after-train"], "err")], ids=["merged", "kept"])
@pytest.mark.parametrize("fit", [[], ["--fit", "300GiB"]], ids=["one run", "fit"])
def test_who_serves_the_base_is_a_warning_only_where_the_base_is_kept(fit, how, stream, capsys):
    assert main(["llama-3.2-3b", "--quant-method", "RTN", "--group-size", "16", *how, *fit]) == 0
    printed = capsys.readouterr()
    assert "vLLM reads compressed-tensors integers" in getattr(printed, stream)
    assert printed.err.count("vLLM") == (stream == "err")


def run_known(name, created_at, method, kind, *, model=("llama", 3_212_749_824), device="cpu"):
    plan = {"method": method, "adapter": {"kind": kind}}
    model = dict(zip(("family", "parameters"), model, strict=True))
    forecast = {"flops_per_token": 1e9, "model": model, "settings": {"device": device, "plan": plan}}
    record = SimpleNamespace(created_at=created_at, memory={"forecast": forecast}, training={"tokens_per_s": 200.0})
    return SimpleNamespace(record=record, name=name)


def test_the_rate_of_the_nearest_run_here_tells_the_time_and_is_named_with_what_it_was(capsys, monkeypatch):
    known = [
        run_known("whole", "2026-05", "NoQuant", "NoPeft"),
        run_known("mine", "2026-03", "QLORA", "LoRa"),
        run_known("older", "2026-01", "QLORA", "LoRa"),
        run_known("smaller", "2026-04", "QLORA", "LoRa", model=("llama", 134_515_008)),
        SimpleNamespace(record=None, name="foreign"),
        SimpleNamespace(record=SimpleNamespace(memory={"forecast": 3}, training={}, created_at="2026-06"), name="odd"),
    ]
    for number, source in ((0, "mine"), (1, "older"), (2, "smaller (another model)"), (3, "whole (NoQuant, NoPeft)")):
        left = [item for item in known if item.name not in ("mine", "older", "smaller")[:number]]
        monkeypatch.setattr("quantkit_tools.plan_time.Registry.artifacts", lambda _, left=left: left)
        data = answered(capsys, "llama-3.2-3b", "--quant-method", "QLORA", "--device", "cpu")
        assert data["time"]["rate_source"] == f"the rate of {source}: 200 tokens/s"
    monkeypatch.setattr("quantkit_tools.plan_time.Registry.artifacts", lambda _: known)
    data = answered(capsys, "llama-3.2-3b", "--quant-method", "QLORA", "--device", "cpu")
    assert data["time"]["tokens_per_s"] == pytest.approx(200e9 / data["flops_per_token"])
    other = answered(capsys, "llama-3.2-3b", "--quant-method", "QLORA", "--device", "cuda")
    assert other["time"]["tokens_per_s"] is None
