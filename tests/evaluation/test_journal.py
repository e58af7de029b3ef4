"""A killed evaluation goes on where it was: nothing is lost, nothing is generated twice, nothing foreign is believed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from quantkit.errors import UsageError
from quantkit.evaluation.generation import Generation
from quantkit.evaluation.journal import (
    Journal,
    Journals,
    fingerprint_of,
    keep_answer,
    keep_likelihood,
    kept_answers,
    kept_likelihoods,
)

KEY = {"artifact": "a" * 64, "requests": fingerprint_of([[1, 2], [3]]), "max_new_tokens": 8}


def written(path: Path, count: int = 3) -> list[bytes]:
    with Journal(path, KEY) as journal:
        for number in range(count):
            journal.add("answer", number, {"text": f"täxt {number}", "tokens": [number, 2]})
    return path.read_bytes().splitlines(keepends=True)


def test_what_was_finished_is_known_to_the_next_run(tmp_path: Path) -> None:
    written(tmp_path / "j")
    with Journal(tmp_path / "j", dict(reversed(KEY.items()))) as journal:
        assert journal.known("answer") == {number: {"text": f"täxt {number}", "tokens": [number, 2]} for number in range(3)}
        assert journal.known("loss") == {}
        assert journal.resumed == {"answer": 3}
        journal.add("loss", 0, [1.5, 3])
    with Journal(tmp_path / "j", KEY) as journal:
        assert journal.known("loss") == {0: [1.5, 3]}
        assert len(journal.known("answer")) == 3


@pytest.mark.parametrize("changed", [{"max_new_tokens": 9}, {"requests": "other"}, {"version": "2"}])
def test_another_key_starts_afresh(changed: dict[str, Any], tmp_path: Path) -> None:
    written(tmp_path / "j")
    with Journal(tmp_path / "j", KEY | changed) as journal:
        assert journal.known("answer") == {}
        assert journal.resumed == {}
    with Journal(tmp_path / "j", KEY) as journal:
        assert journal.known("answer") == {}


def test_fresh_starts_afresh(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    with journals.open("sums", KEY) as journal:
        journal.add("answer", 0, 1)
    with Journals(tmp_path, fresh=True).open("sums", KEY) as journal:
        assert journal.known("answer") == {}
        journal.add("answer", 1, 2)
    with journals.open("sums", KEY) as journal:
        assert journal.known("answer") == {1: 2}


def test_a_file_that_is_cut_off_anywhere_gives_its_whole_lines_and_can_be_gone_on_with(tmp_path: Path) -> None:
    lines = written(tmp_path / "whole")
    content = b"".join(lines)
    ends = [len(b"".join(lines[: count + 1])) for count in range(len(lines))]
    for size in sorted({*range(0, len(content), 9), *(end + by for end in ends for by in (-1, 0))}):
        path = tmp_path / "cut"
        path.write_bytes(content[:size])
        with Journal(path, KEY) as journal:
            whole = max(0, sum(end <= size for end in ends) - 1)
            assert sorted(journal.known("answer")) == list(range(whole))
            journal.add("answer", 7, "new")
        with Journal(path, KEY) as journal:
            assert sorted(journal.known("answer")) == [*range(whole), 7]


@pytest.mark.parametrize(
    "line",
    [b"no json\n", b"[1]\n", b'{"kind":"answer","number":"1","value":1}\n', b'{"kind":"answer","number":1}\n', b"[" * 9999],
)
def test_what_is_no_entry_ends_the_reading(line: bytes, tmp_path: Path) -> None:
    lines = written(tmp_path / "j")
    (tmp_path / "j").write_bytes(b"".join([*lines[:2], line, *lines[2:]]))
    with Journal(tmp_path / "j", KEY) as journal:
        assert list(journal.known("answer")) == [0]


def test_a_result_that_is_filed_leaves_no_journal(tmp_path: Path) -> None:
    journals = Journals(tmp_path / "results")
    with journals.open("sums", KEY) as journal:
        journal.add("answer", 0, 1)
    assert [path.name for path in (tmp_path / "results").iterdir()] == [".sums.unfinished.jsonl"]
    journals.discard("sums")
    journals.discard("sums")
    assert list((tmp_path / "results").iterdir()) == []


def test_of_two_processes_at_one_evaluation_one_keeps_the_journal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(tmp_path / "j", KEY) as first, Journal(tmp_path / "j", KEY) as second:
        first.add("answer", 0, "kept")
        second.add("answer", 1, "not kept")
        assert second.known("answer") == {1: "not kept"}
    assert "another process is at the same evaluation" in capsys.readouterr().err
    with Journal(tmp_path / "j", KEY) as journal:
        assert journal.known("answer") == {0: "kept"}


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_generated(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"file: results cannot be written: .*; --registry names another folder"):
        Journals(tmp_path / "file").open("sums", KEY)


def test_a_journal_that_is_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / ".sums.unfinished.jsonl").mkdir()
    with pytest.raises(UsageError, match=r"\.sums\.unfinished\.jsonl: cannot be written: "):
        Journals(tmp_path).open("sums", KEY)


def test_a_full_disk_is_said_once_and_the_evaluation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Journal(tmp_path / "j", KEY) as journal:
        journal.add("answer", 0, "kept")

        class Full:
            def write(self, _: bytes) -> None:
                raise OSError(28, "No space left on device")

            def __getattr__(self, name: str) -> Any:
                return getattr(stream, name)

            def __enter__(self) -> None: ...
            def __exit__(self, *_: object) -> None: ...

        stream = journal._stream
        monkeypatch.setattr(journal, "_stream", Full())
        journal.add("answer", 1, "in memory")
        journal.add("answer", 2, "in memory")
        assert len(journal.known("answer")) == 3
    assert capsys.readouterr().err.count("No space left on device; if this run breaks off") == 1


def test_the_fingerprint_is_that_of_the_token_ids() -> None:
    assert fingerprint_of([[1, 2], [3]]) == fingerprint_of(((1, 2), (3,)))
    assert fingerprint_of([[1, 2], [3]]) != fingerprint_of([[1], [2, 3]])


def test_answers_come_back_as_they_were_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    answer = Generation("four", (4, 2), True)
    with Journal(tmp_path / "j", KEY) as journal:
        keep_answer(journal, 1, answer)
        for number, value in enumerate([{}, None, {"text": "a", "tokens": "b", "stopped": True}, 3]):
            journal.add("answer", 2 + number, value)
        keep_answer(journal, 9, answer)
    with Journal(tmp_path / "j", KEY) as journal:
        assert kept_answers(journal, 9) == {1: answer}


def test_likelihoods_come_back_as_they_were_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", KEY) as journal:
        for number, value in enumerate([(-1.0, True), (float("-inf"), False), (float("nan"), False), (-2.5, False)]):
            keep_likelihood(journal, number, value)
        journal.add("likelihood", 5, [-1.0])
        journal.add("likelihood", 6, ["-1.0", True])
    with Journal(tmp_path / "j", KEY) as journal:
        assert kept_likelihoods(journal, 9) == {0: (-1.0, True), 3: (-2.5, False)}
        assert kept_likelihoods(journal, 2) == {0: (-1.0, True)}


def test_options_that_were_judged_are_not_judged_again(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quantkit.evaluation import measuring
    from quantkit.evaluation.likelihood import loglikelihoods
    from quantkit.evaluation.run import evaluate_model
    from quantkit.evaluation.sources import read_tasks

    options = {"text": ["one", "two", "three"], "label": ["A", "B", "C"]}
    rows = [{"question": f"What is {at} + 1?", "choices": options, "answerKey": "B"} for at in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    loaded, tasks = (
        (model, AutoTokenizer.from_pretrained(tiny_model)),
        read_tasks([str(tmp_path / "rows.jsonl")], kind="choice-likelihood"),
    )
    plain = evaluate_model(*loaded, tasks, batch_size=2)[0]
    judged = loglikelihoods

    class Killed(BaseException):
        pass

    def broken_off(*arguments: Any, on_found: Any, **more: Any) -> Any:
        seen: list[int] = []

        def found(number: int, likelihood: Any) -> None:
            on_found(number, likelihood)
            seen.append(number)
            if len(seen) == 7:
                raise Killed

        return judged(*arguments, on_found=found, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "loglikelihoods", broken_off)
        with pytest.raises(Killed):
            evaluate_model(*loaded, tasks, batch_size=2, journals=Journals(tmp_path))
    resumed = evaluate_model(*loaded, tasks, batch_size=2, journals=Journals(tmp_path))[0]
    assert resumed.settings == plain.settings | {"resumed_likelihoods": 7}
    for one, other in zip(resumed.rows, plain.rows, strict=True):
        assert (one.answer, one.correct) == (other.answer, other.correct)
        assert one.nll == pytest.approx(other.nll, abs=1e-4)


class Deadly(Journals):
    """Journals of a process that is killed when it has begun the `at`-th entry."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder)
        self.left = at

    def open(self, task: str, key: Mapping[str, Any]) -> Journal:
        journal = super().open(task, key)
        add = journal.add

        def counted(kind: str, number: int, value: Any) -> None:
            self.left -= 1
            if not self.left:
                os.kill(os.getpid(), signal.SIGKILL)
            add(kind, number, value)

        journal.add = counted  # type: ignore[method-assign]
        return journal


def evaluated(folder: str, results: str, kill_at: int = 0) -> dict[str, Any]:
    """Evaluate the model of a folder, in small batches, with journals under `results`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from quantkit.evaluation.run import evaluate_model
    from quantkit.evaluation.sources import read_tasks

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    (result,) = evaluate_model(
        model,
        AutoTokenizer.from_pretrained(folder),
        read_tasks(limit=24)[:1],
        batch_size=3,
        max_new_tokens=16,
        journals=Deadly(Path(results), kill_at) if kill_at else Journals(Path(results)),
    )
    return result.to_dict()


def test_an_evaluation_killed_in_the_middle_ends_as_one_that_was_not(tiny_model: Path, tmp_path: Path) -> None:
    code = "import sys; from tests.evaluation.test_journal import evaluated; evaluated(*sys.argv[1:], kill_at=10)"
    killed = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model), str(tmp_path / "b")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    journal = tmp_path / "b" / ".unseen_numbers.unfinished.jsonl"
    kept = [json.loads(line)["value"] for line in journal.read_bytes().split(b"\n")[1:-1]]
    assert len(kept) == 9
    whole, resumed = (evaluated(str(tiny_model), str(tmp_path / name)) for name in "ab")
    assert resumed["rows"] == whole["rows"]
    assert resumed["scores"] == whole["scores"]
    assert resumed["settings"] == whole["settings"] | {"resumed_answers": len(kept)}
    kept_tokens = sum(len(answer["tokens"]) for answer in kept)
    assert resumed["cost"]["generated_tokens"] == whole["cost"]["generated_tokens"] - kept_tokens
    rate = resumed["cost"]["generated_tokens"] / resumed["cost"]["generation_s"]
    assert resumed["cost"]["tokens_per_s"] == pytest.approx(rate, rel=0.05)
