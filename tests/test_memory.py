"""Is a peak charged to the stage that caused it, and is it said whose number it is?"""

import json
import sys
from types import SimpleNamespace

import pytest

from quantkit import memory
from quantkit.errors import UsageError
from quantkit.memory import MemoryLog, StagePeak, memory_rows

MIB = 1 << 20


def touch(size: int) -> None:
    """Use so many bytes, page by page, and give them back."""
    block = bytearray(size)
    block[::4096] = b"x" * len(block[::4096])


def grown(log: MemoryLog) -> list[int]:
    return [peak.peak_rss_bytes // MIB for peak in log.stages]


def two_stages() -> MemoryLog:
    log = MemoryLog()
    with log.stage("before"):
        pass
    with log.stage("large"):
        touch(200 * MIB)
    with log.stage("after"):
        pass
    return log


def check_peaks(log: MemoryLog) -> None:
    before, large, after = grown(log)
    assert 190 <= large - before <= 300
    assert after - before < 50


def test_a_block_that_is_freed_again_counts_for_its_stage_only():
    check_peaks(two_stages())


def test_where_the_kernels_mark_cannot_be_reset_it_is_sampled_and_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    monkeypatch.setattr(memory, "_lifetime_peak_bytes", lambda: 0)
    log = MemoryLog()
    with log.stage("before"):
        pass
    with log.stage("large"):
        import time

        block = bytearray(200 * MIB)
        block[::4096] = b"x" * len(block[::4096])
        time.sleep(0.2)
        del block
    with log.stage("after"):
        pass
    check_peaks(log)
    assert all(peak.rss_sampled for peak in log.stages)
    assert memory_rows(log)[0][-1].name == "process resident (sampled)"


def test_a_stage_that_raises_the_lifetime_peak_between_samples_is_still_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    peaks = iter([100 * MIB, 9000 * MIB])
    monkeypatch.setattr(memory, "_lifetime_peak_bytes", lambda: next(peaks))
    log = MemoryLog()
    with log.stage("short"):
        pass
    assert log.stages[0].peak_rss_bytes == 9000 * MIB


def test_a_stage_inside_another_counts_for_both():
    log = MemoryLog()
    with log.stage("train"):
        with log.stage("load"):
            touch(200 * MIB)
        with log.stage("step"):
            pass
    load, step, train = grown(log)
    assert train >= load
    assert load - step > 150
    assert [peak.inside for peak in log.stages] == ["train", "train", None]
    assert log.overall().duration_s == log.stages[2].duration_s


def test_a_stage_that_fails_is_recorded():
    log = MemoryLog()
    with pytest.raises(MemoryError), log.stage("train"):
        raise MemoryError
    assert [peak.stage for peak in log.stages] == ["train"]


def test_cuda_peaks_are_reset_per_stage_and_told_apart(monkeypatch):
    peaks = {"allocated": 7, "reserved": 9}
    resets = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        reset_peak_memory_stats=resets.append,
        max_memory_allocated=lambda index: peaks["allocated"] + index,
        max_memory_reserved=lambda index: peaks["reserved"] + index,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    log = MemoryLog()
    with log.stage("train"):
        pass
    (peak,) = log.stages
    assert resets == [0, 1]
    assert peak.peak_allocated_bytes == {"cuda:0": 7, "cuda:1": 8}
    assert peak.peak_reserved_bytes == {"cuda:0": 9, "cuda:1": 10}
    assert [column.name for column in memory_rows(log)[0]][2:4] == ["cuda:0 allocated", "cuda:0 reserved"]


def test_without_torch_no_cuda_number_is_invented(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    log = two_stages()
    assert all(peak.peak_allocated_bytes == {} for peak in log.stages)
    assert [column.name for column in memory_rows(log)[0]] == ["stage", "time", "process resident"]


def test_the_whole_run_is_the_largest_of_each():
    log = MemoryLog(
        [StagePeak("a", 1.0, 5, {"cuda:0": 3}, {"cuda:0": 4}), StagePeak("b", 2.0, 4, {"cuda:0": 6}, {"cuda:0": 8})]
    )
    assert log.overall() == StagePeak("whole run", 3.0, 5, {"cuda:0": 6}, {"cuda:0": 8})


def test_waiting_is_no_processor_time():
    import time

    log = MemoryLog()
    with log.stage("waits"):
        time.sleep(0.2)
    (peak,) = log.stages
    assert peak.cpu_s is not None
    assert peak.cpu_s < 0.1 < peak.duration_s
    assert log.overall().cpu_s == peak.cpu_s


def test_a_log_survives_json():
    log = two_stages()
    again = MemoryLog.from_dict(json.loads(json.dumps(log.to_dict())))
    assert again.stages == log.stages


def test_a_stage_with_an_unknown_key_is_refused():
    with pytest.raises(UsageError, match=r"memory.stages has the unknown key 'peak_rss_gb'"):
        StagePeak.from_dict({"stage": "train", "duration_s": 1.0, "peak_rss_gb": 3})
