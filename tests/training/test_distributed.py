"""Do two processes train what one does, and do they start, stop and fail as one?

Two gloo processes are started once, as torchrun starts them; `distributed_worker` is what they do.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from quantkit.data.arithmetic import arithmetic_data
from quantkit.errors import UsageError
from quantkit.files import verify_manifest
from quantkit.joining import FSDP_WANTED
from quantkit.training.checkpoints import RunState
from quantkit.training.identity import check_same_run
from quantkit.training.order import fillers
from quantkit_tools.flags import parse_train_flags
from tests.training.helpers import config, equal, run, trained
from tests.training.scenarios import SCENARIOS, made

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "Fine-tuning" / "launch"


@pytest.mark.parametrize("name", ["one_node", "many_nodes"])
def test_accelerate_reads_the_launch_files(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert found.distributed_type == "MULTI_GPU"
    assert found.num_processes % found.num_machines == 0


def test_the_launch_file_of_fsdp_says_what_is_wanted() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    found = load_config_from_file(str(LAUNCH / "fsdp2.yaml"))
    assert found.distributed_type == "FSDP"
    assert {key: str(value).lower() for key, value in found.fsdp_config.items()} == {
        key: wanted for key, (wanted, _) in FSDP_WANTED.items()
    }


def test_the_slurm_script_is_a_script_whose_command_has_known_flags() -> None:
    script = LAUNCH / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    (flags,) = re.findall(r'exec quantkit train "\$@" (.*)\'', script.read_text())
    for word in ((), ("true",), ("True",)):
        found = parse_train_flags(["--model-name-or-path", "x", *flags.split(), *word])
        assert found.config.resume_from_checkpoint is True


@pytest.fixture(scope="module")
def together(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Folder of what two processes wrote, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    rows = folder / "rows.jsonl"
    lines = [{"question": row["question"], "answer": row["answer"]} for row in arithmetic_data(train=9, seed=5).train]
    rows.write_text("\n".join(map(json.dumps, lines)))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, "-m", "tests.training.distributed_worker", str(tiny_model), str(rows), str(folder)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout, done.stderr


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return what each process noted in a scenario."""
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_have_the_loss_curve_of_one(  # noqa: PLR0917
    name: str, together: tuple[Path, str, str], tiny_model: Path, data: Any, tokenizer: Any, tmp_path: Path
) -> None:
    scenario, model = SCENARIOS[name], made(SCENARIOS[name], tiny_model)
    alone = run(model, scenario.rows_of(data), scenario.whole(), tokenizer, tmp_path)
    first, second = seen(together[0], name)
    assert first["result"]["losses"] == pytest.approx(alone.losses, rel=2e-6)
    assert alone.losses[-1] < alone.losses[0]
    assert first["result"]["losses"] == second["result"]["losses"]
    assert scenario.full or equal(first["weights"], second["weights"])
    for key, weight in trained(model).items():
        torch.testing.assert_close(first["weights"][key], weight, rtol=1e-4, atol=1e-6)
    for key in ("steps", "tokens", "response_tokens", "padding_free", "prefix_sharing"):
        assert first["result"][key] == getattr(alone, key), key
    assert alone.prefix_sharing


@pytest.mark.parametrize("name", SCENARIOS)
def test_rows_that_do_not_divide_are_each_trained_on_once_an_epoch(name: str, together: tuple[Path, str, str]) -> None:
    steps_an_epoch = -(-SCENARIOS[name].rows // 8)
    rows: dict[int, list[int]] = {}
    for noted in seen(together[0], name):
        for step, of_step in dict(noted["passes"]).items():
            rows.setdefault(step // steps_an_epoch, []).extend(of_step)
    assert len(rows) == SCENARIOS[name].settings.get("num_train_epochs", 1)
    assert all(sorted(of_epoch) == list(range(1, SCENARIOS[name].rows + 1)) for of_epoch in rows.values())


def test_gradients_go_over_the_wire_once_a_step(together: tuple[Path, str, str]) -> None:
    for noted in seen(together[0], "dense"):
        passes = [step for step, _ in noted["passes"]]
        assert max(map(passes.count, passes)) == 2
        last_of_step = [number for number, step in enumerate(passes, 1) if step not in passes[number:]]
        assert sorted(set(noted["reduced"])) == last_of_step


def test_a_base_that_is_split_gives_the_run_of_a_base_that_is_not(together: tuple[Path, str, str]) -> None:
    for whole, split in zip(seen(together[0], "four bit"), seen(together[0], "split four bit"), strict=True):
        assert split["result"]["losses"] == whole["result"]["losses"]
        assert equal(split["weights"], whole["weights"])
        assert split["passes"] == whole["passes"]
        assert split["result"]["fused_adapters"] == whole["result"]["fused_adapters"] > 0
        assert whole["held"] == whole["frozen"]
        assert split["held"] == pytest.approx(split["frozen"] / 2, rel=0.01)
        assert whole["kept"]
        assert whole["look"] == split["look"]
    first, second = seen(together[0], "split four bit")
    assert first["kept"]
    assert not second["kept"]  # its part of the weights is gone


def test_weights_that_are_all_trained_are_held_in_parts(together: tuple[Path, str, str]) -> None:
    for noted in seen(together[0], "split full"):
        assert noted["held"] == pytest.approx(noted["frozen"] / 2, rel=0.01)
    checkpoint = together[0] / "resumed full" / "checkpoint-2"
    states = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert not any(hasattr(value, "full_tensor") for values in states["state"].values() for value in values.values())
    AutoModelForCausalLM.from_pretrained(checkpoint)


@pytest.mark.parametrize(("name", "goes_on"), [("dense", "resumed"), ("split full", "resumed full")])
def test_one_signal_to_one_process_stops_both_and_they_go_on_split_bit_for_bit(
    name: str, goes_on: str, together: tuple[Path, str, str]
) -> None:
    straight = seen(together[0], name)
    for rank, noted in enumerate(seen(together[0], goes_on)):
        assert noted["stopped"]["interrupted"]
        assert noted["stopped"]["steps"] == noted["result"]["resumed_from"] == 2
        assert noted["result"]["losses"] == straight[rank]["result"]["losses"]
        assert equal(noted["weights"], straight[rank]["weights"])
    checkpoint = together[0] / goes_on / "checkpoint-2"
    verify_manifest(checkpoint)
    assert sorted(path.name for path in checkpoint.glob("rng_state*")) == ["rng_state_0.pth", "rng_state_1.pth"]


def test_the_command_ends_with_one_code_one_artifact_and_one_message(together: tuple[Path, str, str]) -> None:
    folder, out, err = together
    assert [noted["codes"] for noted in seen(folder, "codes")] == [[0, 2, 0, 0, 1]] * 2
    (artifact,) = (path for path in (folder / "made").iterdir() if not path.name.startswith("."))
    verify_manifest(artifact)
    assert not list((folder / "broken").glob("[!.]*"))
    (split,) = (path for path in (folder / "split").iterdir() if not path.name.startswith("."))
    verify_manifest(split)
    training = json.loads((split / "quantization_metadata.json").read_text())["training"]
    assert training["settings"]["sharding"] == "fsdp2"
    assert training["fused_adapters"] > 0
    for folded in (artifact, split):  # by the first process, tensor by tensor
        assert json.loads((folded / "quantization_metadata.json").read_text())["verification"]["merge"]["layers_changed"] > 0
    (full,) = (path for path in (folder / "full").iterdir() if not path.name.startswith("."))
    verify_manifest(full)
    assert AutoModelForCausalLM.from_pretrained(full).lm_head.weight.any()
    assert out.count("artifact: ") == 3
    assert out.count("train: 1/2 steps") == 5  # with two scenarios; the last run's first step broke in the other process only
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "exists; choose another output folder" in errors[0]
    assert "the loss is nan" in errors[1]


def test_a_checkpoint_of_two_processes_is_not_one_processs(tmp_path: Path) -> None:
    settings = config().to_dict()
    state = RunState(settings=settings, facts={"processes": 2}, versions={})
    run = {"settings": settings, "facts": {"processes": 2}, "versions": {}}
    assert check_same_run(state, run, where=tmp_path, total_steps=0) == {}
    run["facts"] = {"processes": 1}
    with pytest.raises(UsageError, match=r"made by another run: processes was 2 and is 1\. Use the same, or start a new run"):
        check_same_run(state, run, where=tmp_path, total_steps=0)


def test_fillers_teach_nothing_unless_the_model_has_a_loss_of_its_own(data: Any, capsys: pytest.CaptureFixture[str]) -> None:
    items = [[row] for row in data.train[:2]]
    assert [[row.supervised for row in item] for item in fillers(items, 3)] == [[0], [0], [0]]
    assert capsys.readouterr().out == ""
    assert fillers(items, 3, own_loss=True) == [items[0], items[1], items[0]]
    assert "3 rows repeated in an epoch" in capsys.readouterr().out
