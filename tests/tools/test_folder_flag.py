"""Is the folder of artifacts the same one under each of its names, whichever the verb?"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantkit import console
from quantkit.errors import UsageError
from quantkit_registry.store import root_of
from quantkit_tools import cli, plan, preflight, registry
from quantkit_tools.adopting.flags import parse_adopt_flags
from quantkit_tools.evaluation.flags import Flags as Evaluate
from quantkit_tools.exporting.asked import Flags as Export
from quantkit_tools.flags import CommandFlags, parse_run_flags
from quantkit_tools.folder_flag import NAMES, with_own_folder_flag
from quantkit_tools.merging.flags import parse_merge_flags
from quantkit_tools.quantizing.flags import parse_quantize_flags
from quantkit_tools.report import Flags as Report
from quantkit_tools.small_flags import read_small_flags

QUANTIZE = ["--src", "model", "--method", "RTN"]


def run_folder(kind: type[Any], verb: str) -> Callable[[list[str]], Path]:
    return lambda words: root_of(parse_run_flags(["--model", "tiny", *words], kind, verb=verb)[0].output_dir)


FOLDERS: dict[str, Callable[[list[str]], Any]] = {
    "train": run_folder(CommandFlags, "train"),
    "plan": run_folder(plan.PlanFlags, "plan"),
    "preflight": run_folder(preflight.PreflightFlags, "preflight"),
    "quantize": lambda words: parse_quantize_flags([*QUANTIZE, *words]).config.dst,
    "merge": lambda words: parse_merge_flags(["adapter", *words]).config.dst,
    "export": lambda words: read_small_flags(Export, "export", ["artifact", *words]).dst,
    "evaluate": lambda words: read_small_flags(Evaluate, "evaluate", ["artifact", *words]).registry,
    "report": lambda words: read_small_flags(Report, "report", words).registry,
    "registry adopt": lambda words: parse_adopt_flags(["adapter", *words]).config.registry,
}
"""Verb → the folder that its flags come to."""
NAMED_ELSEWHERE = {
    "sweep": "its file",
    "audit": "paths",
    "demo": "a folder of its own",
    "doctor": "all of them",
    "methods": "none",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("verb", FOLDERS)
def test_each_verb_understands_each_name(verb: str, name: str) -> None:
    for written in ([f"--{name}", "here"], [f"--{name.replace('_', '-')}=here"]):
        assert Path(FOLDERS[verb](written)) == Path("here")


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_registry_understand_each_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert registry.main(["ls", f"--{name.replace('_', '-')}", str(tmp_path), "--json"]) == 0
    assert f'"root": "{tmp_path}"' in capsys.readouterr().out
    console.use_stdout()


def test_no_verb_is_forgotten() -> None:
    assert {*(verb.split()[0] for verb in FOLDERS), *NAMED_ELSEWHERE} == set(cli.VERBS)


@pytest.mark.parametrize("verb", [*FOLDERS, "registry ls"])
def test_two_names_at_once_are_one_too_many(verb: str) -> None:
    ask = FOLDERS.get(verb, lambda words: registry.main(["ls", *words]))
    with pytest.raises(UsageError, match="--root and --registry both name the folder of artifacts; keep one"):
        ask(["--root", "here", "--registry", "there"])


def test_a_run_takes_the_default_for_the_registry_and_the_others_names_for_the_folder_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("QUANTKIT_REGISTRY", "/elsewhere")
    assert FOLDERS["train"](["--output-dir", "artifacts"]) == Path("/elsewhere")
    for written in (["--registry", "artifacts"], ["--root=artifacts"]):
        assert FOLDERS["train"](written) == Path("artifacts")
        assert Path(FOLDERS["evaluate"](written)) == Path("artifacts")


def test_other_words_stay_as_they_are() -> None:
    words = ["artifacts", "--data", "root", "--rooted", "x", "-r", "--"]
    assert with_own_folder_flag(words, "output_dir") == words


@pytest.mark.parametrize("verb", ["registry ls", "report", "evaluate", "export", "merge", "registry adopt"])
def test_help_shows_one_of_them(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    word, *more = verb.split()
    with pytest.raises(SystemExit):
        cli.run_verb(word, [*more, "--help"])
    shown = capsys.readouterr().out
    assert len(re.findall(r"--(?:registry|root|dst|output-dir)\b", shown.partition("options")[2])) == 1
