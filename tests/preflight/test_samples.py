"""The rows that are shown are the rows that are trained on: text, mask, and what was cut; on screen, and on the page."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from quantkit.config import RunConfig
from quantkit.data import read_data
from quantkit.preflight import ModelFacts, Preflight, examine, page
from quantkit.preflight.samples import Sample
from tests.data.conftest import Write
from tests.reporting.chromium import browser, find_chromium

HOSTILE = "<script>document.title = 'x'</script><img src=x onerror=alert(1)>\x1b[31m {{ 7 * 7 }} </pre>"


def examined(tokenizer: Any, path: str, rows: int, max_length: int = 256) -> Preflight:
    config = RunConfig(model_name_or_path="/models/of/mine/Tiny", dataset_name=path, max_length=max_length)
    read = read_data(dataset=path, tokenizer=tokenizer, max_length=max_length, on_bad_rows=None)
    return examine(read, config, ModelFacts(), samples=rows)


def shown(tokenizer: Any, path: str, rows: int = 1, max_length: int = 256) -> tuple[Sample, ...]:
    return examined(tokenizer, path, rows, max_length).samples


def spaced() -> Any:
    """Return a tokenizer that decodes the first token of a text without the space before it, as Llama-2's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "▁one", "▁two", "▁is", "▁three", "▁quantkit", "▁", *"abcds-:", "▁and"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_the_pieces_of_a_row_are_its_text_and_letters_of_several_tokens_stay_whole(tokenizer: Any, write: Write) -> None:
    (row,) = shown(tokenizer, write([{"question": "Sag «สาม» 🙂", "answer": "é = 3"}]))
    assert row.segments == [
        ("<|im_start|>user\nSag «สาม» 🙂<|im_end|>\n<|im_start|>assistant\n", False),
        ("é = 3<|im_end|>", True),
    ]
    assert "🙂" in [piece.text for piece in row.pieces]
    assert (row.place, row.why, row.supervised, row.cut_tokens) == ("rows.jsonl line 1", "the first row", row.supervised, 0)
    assert sum(len(piece.ids) for piece in row.pieces) == row.tokens
    assert sum(len(piece.ids) for piece in row.pieces if piece.learnt) == row.supervised


def test_spaces_stay_where_a_tokenizer_decodes_a_token_alone_without_its_space(write: Write) -> None:
    (row,) = shown(spaced(), write([{"text": "one and two is three"}]))
    assert "".join(text for text, _ in row.segments) == "one and two is three</s>"
    assert [piece.text for piece in row.pieces] == ["one", " and", " two", " is", " three", "</s>"]


def test_rows_are_chosen_to_be_looked_at(tokenizer: Any, write: Write) -> None:
    rows = [{"question": "q " * (9 if n == 2 else 1), "answer": "a" if n == 3 else "a b c"} for n in range(9)]
    path = write(rows)
    assert [(row.place[-1], row.why) for row in shown(tokenizer, path, 5)] == [
        ("1", "the first row"),
        ("4", "the row least is learnt of"),
        ("3", "the longest row"),
        ("2", "one of those between"),
        ("6", "one of those between"),
    ]
    assert len(shown(tokenizer, path, 20)) == 9
    assert shown(tokenizer, path, 0) == ()


def test_a_cut_row_says_how_much_is_missing(tokenizer: Any, write: Write) -> None:
    (row,) = shown(tokenizer, write([{"question": "q", "answer": "7 " * 99}]), 1, 64)
    assert row.tokens == 64
    assert row.cut_tokens > 100
    assert row.to_dict()["segments"][1]["learnt"] is True


def test_the_page_holds_what_was_found_and_nothing_that_could_run(tokenizer: Any, write: Write) -> None:
    rows = [{"question": HOSTILE + str(n), "answer": HOSTILE} for n in range(10)]
    text = page.render_page(examined(tokenizer, write(rows), 2), made_at="today")
    assert "default-src &#39;none&#39;; script-src &#39;none&#39;; " in text
    assert "<script" not in text
    assert "<img" not in text
    assert HOSTILE.replace("\x1b", "\\x1b") in unescape(re.sub(r"<[^>]+>", "", text))
    assert "one answer" in text
    assert "1 error, 0 warnings: training on this would not teach what was meant" in text
    assert "/of/mine" not in text
    assert "http" not in text.replace('http-equiv="Content-Security-Policy"', "")


def test_the_middle_of_a_very_long_row_is_left_out_of_the_page(
    tokenizer: Any, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "MOST_PIECES", 10)
    found = examined(tokenizer, write([{"question": "7" * 100, "answer": "8"}]), 1)
    text = page.render_page(found, made_at="today")
    assert f"[…{len(found.samples[0].pieces) - 10} pieces left out…]" in text
    assert text.count('title="') == 10


@pytest.mark.skipif(find_chromium() is None, reason="no Chromium here, so the page is not opened in a browser")
def test_the_page_fits_a_phone_and_follows_the_colour_scheme(tokenizer: Any, write: Write, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    rows = [{"question": HOSTILE + "x" * 200 + str(n), "answer": str(n)} for n in range(3)]
    target.write_text(page.render_page(examined(tokenizer, write(rows), 2, 900), made_at="today"))
    with browser() as tab:
        paper = []
        for width, dark in ((390, False), (1280, True)):
            tab.open(target, width=width, dark=dark)
            assert tab.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
            assert tab.run("document.querySelectorAll('pre .learnt').length") > 0
            paper.append(tab.run("getComputedStyle(document.body).backgroundColor"))
        assert paper == ["rgb(255, 255, 255)", "rgb(18, 23, 29)"]
        assert tab.run("document.title").endswith("quantkit preflight")
        assert tab.logged == []
        assert [url for url in tab.requests if not url.startswith("file:")] == []
