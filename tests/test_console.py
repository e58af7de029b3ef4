"""Is what a person sees whole and calm: at 80 and 160 columns, without colour, in a log file?"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantkit import console
from quantkit.layout import Column, fold, format_bytes, format_duration, table_lines

NAME = "Qwen3-0.6B-openmath_SFT_LoRa256_QLORA_w4_headbf16_mergedbf16"
COLUMNS = [
    Column("name"),
    Column("bits", "right"),
    Column("size", "right"),
    Column("base", priority=2),
    Column("created", priority=1),
]
ROWS = [[NAME, 4, "1.50 GiB", "HuggingFaceTB/SmolLM2-135M-Instruct", "2026-11-22 01:50"]]
ROOT = Path(__file__).parent.parent


def on_terminal(script: str, columns: int, **environment: str) -> str:
    """Run a script in a pseudo-terminal of this width and return what the terminal received."""
    pty, termios, fcntl = (pytest.importorskip(name) for name in ("pty", "termios", "fcntl"))
    import struct

    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    keep = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "CI")}
    script = "from quantkit import console\nfrom tests.test_console import *\n" + script
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env={**keep, "TERM": "xterm-256color", **environment},
    )
    os.close(follower)
    received = b""
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:
            break
        if not chunk:
            break
        received += chunk
    os.close(leader)
    assert child.wait() == 0, received.decode()
    return received.decode()


def lines_of(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "").split("\n")


def test_at_80_columns_nothing_is_wider_and_the_name_is_whole():
    lines = lines_of(on_terminal("console.table('Artifacts', COLUMNS, ROWS)", 80))
    assert max(map(len, lines)) <= 80
    at = next(index for index, line in enumerate(lines) if line.startswith("Qwen3"))
    assert lines[at].split()[0] + (lines[at + 1].split() or [""])[0] in (NAME, NAME + "not")
    assert "not shown at this width: base" in "\n".join(lines)


def test_at_160_columns_a_row_is_one_line():
    lines = lines_of(on_terminal("console.table('Artifacts', COLUMNS, ROWS)", 160))
    (row,) = [line for line in lines if line.startswith("Qwen3")]
    assert row.split() == [NAME, "4", "1.50", "GiB", "HuggingFaceTB/SmolLM2-135M-Instruct", "2026-11-22", "01:50"]


def test_without_a_terminal_there_are_no_control_codes_and_names_are_never_folded(capsys):
    console.table("Artifacts", COLUMNS, ROWS, caption="one model")
    console.say("done", style="bold green")
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert NAME in printed
    assert "2026-11-22 01:50" in printed
    assert printed.endswith("one model\ndone\n")


def test_without_a_width_a_row_is_one_line_with_all_that_its_cells_hold(capsys):
    console.table("Scores", [Column("artifact"), Column("score\n95 %", "right", priority=1)], [[NAME, "54.2%\n40–68\nFLOOR"]])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split() == ["artifact", "score,", "95", "%"]
    assert lines[4] == f"{NAME}  54.2%, 40–68, FLOOR"


def test_marks_beside_a_score_are_folded_where_a_terminal_is_too_narrow_for_them():
    script = "console.table('Scores', [Column('name'), Column('score', 'right')], [[NAME, '0.0 % FLOOR NO STOP UNPARSED']])"
    lines = lines_of(on_terminal(script, 30))
    assert max(map(len, lines)) <= 30
    assert all(word in "\n".join(lines) for word in ("0.0 %", "FLOOR", "STOP", "UNPARSED"))


def test_columns_gives_a_log_file_a_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    console.table("Artifacts", COLUMNS, ROWS)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 60


def test_no_color_leaves_no_colour_codes():
    script = "console.say('careful', style='red'); console.warn('odd')"
    coloured, plain = on_terminal(script, 80), on_terminal(script, 80, NO_COLOR="1")
    assert re.search(r"\x1b\[[0-9;]*3[0-7]m", coloured)
    assert not re.search(r"\x1b\[[0-9;]*[349][0-8]", plain)


def test_markup_of_users_is_text_and_control_characters_are_shown(capsys):
    console.say("[red]loss[/red]")
    console.table("[b]t[/b]", ["a"], [["\x1b[31mred\u202e"]])
    printed = capsys.readouterr().out
    assert "[red]loss[/red]" in printed
    assert "[b]t[/b]" in printed
    assert "\\x1b[31mred\\u202e" in printed


def test_long_words_in_a_log_file_stay_on_one_line(capsys):
    console.say("saved to " + "x" * 300)
    assert capsys.readouterr().out == "saved to " + "x" * 300 + "\n"


def test_warnings_go_to_stderr(capsys):
    console.warn("the head is tied")
    assert capsys.readouterr().err == "warning: the head is tied\n"


def test_with_json_stdout_holds_one_object_and_human_text_goes_to_stderr(capsys):
    console.use_stderr()
    console.say("loading")
    console.table("Methods", ["name"], [["QLORA"]])
    with console.progress("train", 1) as bar:
        bar.advance()
    console.emit_json({"name": "é"})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"name": "é"}
    assert "loading" in err
    assert "QLORA" in err


def test_a_number_that_is_not_finite_is_no_json():
    with pytest.raises(ValueError, match="JSON compliant"):
        console.emit_json({"loss": float("nan")})


def test_columns_without_names_have_no_empty_line_for_them(capsys):
    console.table("Plan", ["", ""], [["method", "QLORA"]])
    assert capsys.readouterr().out.splitlines() == ["", "Plan", "─" * 13, "method  QLORA"]


def test_an_empty_table_says_so(capsys):
    console.table("Artifacts", ["name", "bits"], [])
    assert "(none)" in capsys.readouterr().out


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def run_progress(monkeypatch, capsys, rounds: int, seconds_per_round: float) -> list[str]:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    with console.progress("train", rounds, unit="steps") as bar:
        for step in range(rounds):
            clock.now += seconds_per_round
            bar.advance(loss=1.0 / (step + 1), memory_bytes=1 << 30)
    return capsys.readouterr().out.splitlines()


def test_a_fast_loop_leaves_two_lines_in_a_log(monkeypatch, capsys):
    assert run_progress(monkeypatch, capsys, 100, 0.001) == [
        "train: 1/100 steps · 0.00 s · 0.10 s left · loss 1 · memory 1.00 GiB",
        "train: 100/100 steps · 0.10 s · loss 0.01 · memory 1.00 GiB",
    ]


def test_a_log_says_how_much_time_is_left(monkeypatch, capsys):
    lines = run_progress(monkeypatch, capsys, 100, 1.8)
    assert "train: 11/100 steps · 20 s · 2 min 40 s left" in lines[2]
    assert "left" not in lines[-1]


def test_rounds_that_are_not_even_tell_no_time_left(capsys):
    with console.progress("answers", 3, even=False) as bar:
        bar.advance()
        bar.advance(2)
    assert capsys.readouterr().out.splitlines()[0] == "answers: 1/3 · 0.00 s"


@pytest.mark.parametrize(("columns", "lines"), [("60", 3), ("200", 1), ("", 1)])
def test_a_caption_is_a_paragraph_as_wide_as_there_is_room(columns, lines, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    console.table("Scores", ["name"], [["a"]], caption="some words " * 12)
    assert len([line for line in capsys.readouterr().out.splitlines() if "some" in line]) == lines


def test_a_loop_of_minutes_leaves_a_line_every_5_percent(monkeypatch, capsys):
    assert len(run_progress(monkeypatch, capsys, 100, 1.8)) == 21


def test_a_slow_loop_is_never_silent_for_long(monkeypatch, capsys):
    lines = run_progress(monkeypatch, capsys, 1000, 5.0)
    assert lines[1].startswith("train: 3/1000")
    assert len(lines) < 120


def test_a_loop_that_breaks_off_shows_where(monkeypatch, capsys):
    with console.progress("train", 10) as bar:
        for _ in range(3):
            bar.advance()
    assert capsys.readouterr().out.splitlines()[-1].startswith("train: 3/10")


def test_a_bar_on_a_terminal_fits_80_columns_and_lets_lines_pass_above():
    script = """
import time
with console.progress("train", 3, unit="steps") as outer:
    for step in range(3):
        outer.advance(loss=0.5, tokens_per_s=812.0, memory_bytes=1 << 30)
        console.say("checkpoint saved")
        with console.progress("evaluate", 2) as inner:
            inner.advance(2)
"""
    lines = lines_of(on_terminal(script, 80).replace("\r", "\n"))
    assert max(map(len, lines)) <= 80
    assert any("3/3 steps" in line for line in lines)
    assert any("0:00:00 left" in line for line in lines)
    assert any("loss 0.5 · tokens/s 812 · memory 1.00 GiB" in line for line in lines)
    assert sum(line.strip() == "checkpoint saved" for line in lines) == 3
    assert not any(line.startswith("evaluate") for line in lines[-3:])


def test_live_lines_take_each_others_place_on_a_terminal_and_a_log_gets_none(capsys):
    script = """
with console.live_lines() as show:
    show(["[1/2] train: 3/10 steps", "[2/2] " + 200 * "x"])
    console.say("first done")
    show(["[2/2] train: 5/10 steps"])
"""
    received = on_terminal(script, 80)
    lines = lines_of(received.replace("\r", "\n"))
    assert max(map(len, lines)) <= 80
    for text in ("[1/2] train: 3/10 steps", "[2/2] xxx", "[2/2] train: 5/10 steps"):
        assert any(line.startswith(text) for line in lines), received
    assert sum(line.strip() == "first done" for line in lines) == 1
    assert lines[-1].strip() == ""
    with console.live_lines() as show:
        show(["train: 3/10 steps"])
    assert capsys.readouterr().out == ""


def test_folding_prefers_the_joints_of_a_name():
    assert fold(NAME, 40).split("\n") == ["Qwen3-0.6B-openmath_SFT_LoRa256_QLORA_", "w4_headbf16_mergedbf16"]
    assert fold("x" * 25, 10).split("\n") == ["x" * 10, "x" * 10, "x" * 5]
    assert fold("模型" * 5, 6).split("\n") == ["模型模", "型模型", "模型模", "型"]


def test_numbers_are_never_folded():
    (head, row), _ = table_lines([Column("text"), Column("bits", "right")], [["a " * 60, 1234567890]], 40)
    assert head[0].endswith("bits")
    assert row[0].endswith("1234567890")
    assert len(row) > 1


def test_bytes_and_durations_read_easily():
    assert [format_bytes(n) for n in (0, 1023, 1 << 20, 312 << 20, 3 << 29)] == [
        "0 B",
        "1023 B",
        "1.0 MiB",
        "312 MiB",
        "1.50 GiB",
    ]
    assert [format_duration(s) for s in (59.6, 60, 3599, 3600)] == ["1 min 0 s", "1 min 0 s", "59 min 59 s", "1 h 0 min"]


def test_only_the_console_imports_rich_and_only_when_it_prints():
    rooms = ("quantkit", "plugins", "registry", "tools", "Fine-tuning")
    users = {
        str(path.relative_to(ROOT))
        for room in rooms
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"^\s*(from|import) rich\b", path.read_text(), flags=re.MULTILINE)
    }
    assert users == {"quantkit/console.py"}
    script = "import sys, quantkit.console; sys.exit('rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
