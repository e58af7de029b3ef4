"""What is wrong with libraries, machine and folders is found without importing any of them."""

import re
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from quantkit.doctor.libraries import installed, judge_libraries, versions_of
from quantkit.doctor.machine import Machine, judge_machine, read_machine
from quantkit.doctor.pairs import BadPair, judge_pairs, known_bad
from quantkit.doctor.places import judge_places, read_places, settings

GIB = 1 << 30


def distribution(folder: Path, name: str, version: str, *requires: str) -> Distribution:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    wants = "".join(f"Requires-Dist: {need}\n" for need in requires)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{wants}")
    return Distribution.at(info)


def machine(**changes: object) -> Machine:
    facts: dict[str, object] = {
        "system": "Linux", "cpu": "a processor", "capabilities": ("AVX2",), "flags": frozenset({"avx2"}), "cores": 8,
        "usable_cores": 8.0, "memory_bytes": 16 * GIB, "available_bytes": 8 * GIB, "memory_limit_bytes": None, "gpus": (),
        "gpu_driver": None,
    }  # fmt: skip
    return Machine(**(facts | changes))  # type: ignore[arg-type]


def test_this_environment_has_what_quantkit_asks_for():
    found = installed()
    assert {"quantkit", "torch", "transformers", "peft"} <= set(versions_of(found))
    assert [item for item in judge_libraries(found) if item.severity == "breaks"] == []


def test_a_requirement_of_quantkits_that_is_not_met_breaks_and_one_of_others_is_said(tmp_path):
    wanted = ("peft>=0.21,<0.22", "rich[extra]>=13; python_version>'3'", "gguf; extra=='gguf'")
    found = {
        "quantkit": [distribution(tmp_path, "quantkit", "0.1.0", *wanted)],
        "peft": [distribution(tmp_path, "peft", "0.20.0", "accelerate>=1")],
    }
    own, rich, other = judge_libraries(found)
    assert (own.severity, own.what) == ("breaks", "quantkit 0.1.0 asks for peft<0.22,>=0.21; 0.20.0 is installed")
    assert own.advice == 'pip install "peft<0.22,>=0.21"'
    assert rich.what == "quantkit 0.1.0 asks for rich>=13; it is not installed"
    assert (other.severity, other.subject) == ("beware", "peft, accelerate")


def test_a_package_that_is_there_twice_is_said(tmp_path):
    both = [distribution(tmp_path / "a", "torch", "2.13.0+cpu"), distribution(tmp_path / "b", "torch", "2.11.0")]
    (finding,) = judge_libraries({"torch": both})
    assert finding.what.startswith("versions 2.11.0 and 2.13.0+cpu are installed at once")


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"torchao": "0.18.0", "peft": "0.18.1"}, "LinearActivationQuantizedTensor"),
        ({"torchao": "0.15.0", "peft": "0.21.2"}, "Found an incompatible version of torchao"),
        ({"transformers": "5.20.0", "peft": "0.17.1"}, "HybridCache"),
    ],
)
def test_pairs_that_break_are_found_by_their_versions(versions, told):
    (finding,) = judge_pairs(versions, flags=frozenset(), has_gpu=False)
    assert finding.severity == "breaks"
    assert told in finding.what
    assert all(f"{name} {version}" in finding.subject for name, version in versions.items())


@pytest.mark.parametrize("versions", [{"torchao": "0.18.0", "peft": "0.19.1"}, {"torchao": "0.18.0"}, {"peft": "0.21.2"}, {}])
def test_pairs_that_work_are_not(versions):
    assert judge_pairs(versions, flags=frozenset(), has_gpu=False) == []


def test_the_repacking_of_4_bit_weights_is_a_matter_of_processor_and_device():
    def told(flags: set[str], *, has_gpu: bool = False) -> list[str]:
        found = judge_pairs({"bitsandbytes": "0.50.1"}, flags=frozenset(flags), has_gpu=has_gpu)
        return [finding.severity for finding in found if "repack" in finding.what]

    assert told({"avx512_bf16", "avx2"}) == ["beware"]
    assert told({"avx2"}) == []
    assert told({"avx512_bf16"}, has_gpu=True) == []


def test_every_known_pair_names_a_public_source_or_what_it_was_measured_with():
    assert len(known_bad()) >= 10
    for pair in known_bad():
        assert pair.severity in ("breaks", "beware")
        assert re.search(r"https://\S+/\d+|measured: .*\d+\.\d+", pair.source), pair.what
        assert pair.what
        assert pair.advice


def test_an_entry_of_ones_own_is_judged_like_the_rest():
    pair = BadPair(packages={"torch": "<2.11"}, severity="breaks", what="too old", advice="upgrade", source="seen")
    (finding,) = judge_pairs({"torch": "2.10.0+cpu"}, flags=frozenset(), has_gpu=False, pairs=(pair,))
    assert (finding.subject, finding.what) == ("torch 2.10.0+cpu", "too old")


@pytest.mark.parametrize("version", [1, 2])
def test_limits_of_a_container_are_the_machine_that_counts(tmp_path, version):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/cpuinfo").write_text("model name\t: EPYC\nflags\t\t: avx2 avx512_bf16 amx_tile\n")
    top = tmp_path / "sys/fs/cgroup"
    if version == 2:
        (tmp_path / "proc/self/cgroup").write_text("0::/box\n")
        (top / "box").mkdir(parents=True)
        (top / "box/memory.max").write_text("max\n")
        (top / "memory.max").write_text(f"{GIB}\n")
        (top / "box/cpu.max").write_text("50000 100000\n")
    else:
        (tmp_path / "proc/self/cgroup").write_text("4:memory:/box\n1:cpu,cpuacct:/\n0::/\n")
        (top / "memory/box").mkdir(parents=True)
        (top / "memory/box/memory.limit_in_bytes").write_text(f"{GIB}\n")
        (top / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
        (top / "cpu").mkdir()
        (top / "cpu/cpu.cfs_quota_us").write_text("50000\n")
        (top / "cpu/cpu.cfs_period_us").write_text("100000\n")
    found = read_machine(tmp_path)
    assert (found.cpu, found.capabilities) == ("EPYC", ("AVX2", "AVX512-BF16", "AMX"))
    assert found.memory_limit_bytes == GIB >= found.available_bytes
    assert found.usable_cores == 0.5
    assert "limited to 1.00 GiB" in dict(found.lines())["memory"]


def test_gpus_are_read_from_the_driver(tmp_path):
    (tmp_path / "proc/driver/nvidia/gpus/0000").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu\n")
    (tmp_path / "proc/driver/nvidia/gpus/0000/information").write_text("Model: \t\t NVIDIA H100\nIRQ: 1\n")
    found = read_machine(tmp_path)
    assert (found.gpus, found.gpu_driver) == (("NVIDIA H100",), "570.86.15")
    assert dict(found.lines())["GPU"] == "NVIDIA H100 (driver 570.86.15)"
    (finding,) = [item for item in judge_machine(found, torch_version="2.13.0+cpu", threads="1") if item.subject == "GPU"]
    assert "the NVIDIA driver 570.86.15 is there, and torch 2.13.0+cpu was built without CUDA" in finding.what


def test_a_share_of_the_cores_asks_for_fewer_threads():
    (finding,) = judge_machine(machine(usable_cores=2.5), torch_version="2.13.0", threads=None)
    assert finding.what.startswith("2.5 of 8 cores may be used")
    assert finding.advice == "set OMP_NUM_THREADS=2"
    assert judge_machine(machine(usable_cores=2.5), torch_version="2.13.0", threads="2") == []
    assert judge_machine(machine(), torch_version="2.13.0", threads=None) == []


def test_a_processor_without_avx2_is_said(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (finding,) = judge_machine(machine(flags=frozenset({"sse2"})), torch_version=None, threads=None)
    assert "the processor has no AVX2" in finding.what


def test_folders_that_cannot_be_written_are_found_by_trying(tmp_path, monkeypatch):
    good = read_places(tmp_path / "artifacts", {"HF_HOME": str(tmp_path / "hf")})
    assert [(place.name, place.exists, place.writable) for place in good[:2]] == [
        ("registry", False, True), ("hub cache", False, True),
    ]  # fmt: skip
    assert not (tmp_path / "artifacts").exists()
    (tmp_path / "file").write_text("")
    places = read_places(tmp_path / "file", {"HF_HUB_CACHE": str(tmp_path / "file")})
    registry, hub = judge_places(places[:2], {})
    assert (registry.severity, registry.what) == ("breaks", f"{tmp_path / 'file'} cannot be written to")
    assert "QUANTKIT_REGISTRY" in registry.advice
    assert hub.severity == "beware"
    assert "HF_HOME" in hub.advice


@pytest.mark.parametrize(("free", "severity"), [(1 << 20, "breaks"), (200 << 20, "beware")])
def test_a_full_disk_is_said_with_its_number(tmp_path, monkeypatch, free, severity):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(GIB, GIB - free, free))
    found = judge_places(read_places(tmp_path, {})[:1], {})
    assert [(item.severity, item.subject) for item in found] == [(severity, "registry")]
    assert f"MiB are free at {tmp_path}" in found[0].what


def test_offline_without_a_cache_loads_no_hub_id(tmp_path):
    said = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "none")}
    (finding,) = [item for item in judge_places(read_places(tmp_path, said), said) if item.subject == "hub cache"]
    assert finding.what.startswith("HF_HUB_OFFLINE is set and")
    (tmp_path / "none/hub").mkdir(parents=True)
    assert not [item for item in judge_places(read_places(tmp_path, said), said) if item.subject == "hub cache"]


def test_a_token_is_never_shown():
    assert settings({"HF_TOKEN": "hf_secret", "HF_HOME": "/x", "PATH": "y"}) == {"HF_HOME": "/x", "HF_TOKEN": "set"}
