"""One file, nothing from outside, and no text of an artifact becomes part of the page's own code."""

import json
import re
from html.parser import HTMLParser

from quantkit.reporting.page import breakable, render_page, script_data
from quantkit.reporting.report import Report
from quantkit.reporting.wording import pairs, without_folders
from tests.reporting.conftest import subject, task_result

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}"
TAKES_A_URL = ("src", "href", "srcset", "action", "data", "poster")


class Read(HTMLParser):
    """The page's tags with their attributes, and its text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(page)
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside not in ("script", "style"):
            self.words.append(data)


def test_the_page_says_what_the_report_holds(report: Report) -> None:
    text = Read(render_page(report.with_comparisons())).text
    for said in (
        "6 artifacts, 2 tasks",
        "96.7%",
        "98.3%",
        "88.6–99.1",
        "FLOOR",
        "Measured on 60 rows, on cpu, computing in float32",
        "child: quantized with GPTQ",
        "Gate",
        "Memory while it was made",
        "group_size",
        "best is better",
        "No results at all (quantkit evaluate makes them): unmeasured.",
        "A result was left out: results/abc…/t.json: no object",
        "this shows differences and is no fair sample",
    ):
        assert said in text, said


def test_nothing_is_loaded_from_outside(report: Report) -> None:
    page = Read(render_page(report))
    links = {value for _, attributes in page.tags for name, value in attributes.items() if name in TAKES_A_URL}
    assert links
    assert all(link is not None and link.startswith("#") for link in links)
    assert [tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "embed", "base", "form")] == ["form"]
    policy = next(attributes["content"] for tag, attributes in page.tags if attributes.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert "http" not in policy


def test_plotly_is_inlined_once_and_only_where_something_is_drawn(report: Report) -> None:
    page = render_page(report)
    assert page.count("plotly.js v") == 1
    assert len(page) > 4_000_000
    assert len(render_page(Report.of([], title="t"))) < 60_000


def test_hostile_text_is_shown_and_not_run() -> None:
    record = {
        "created_at": HOSTILE,
        "recipe": {HOSTILE: HOSTILE},
        "training": {"losses": [1.0, 2.0]},
        "verification": {"gate": {"outcome": "failed", "reasons": [HOSTILE]}, "fidelity": HOSTILE},
        "memory": {"stages": [{"stage": HOSTILE, "duration_s": "x", "peak_rss_bytes": HOSTILE}, 7]},
        "environment": {"gpu": [HOSTILE, {HOSTILE: None}]},
    }
    made = subject(
        1, HOSTILE, task_result(50, text=HOSTILE), method=HOSTILE, peft=HOSTILE, record=record, lineage=[HOSTILE],
        evidence=[HOSTILE], base=HOSTILE, quantization={"weights_dtype": HOSTILE},
    )  # fmt: skip
    page = render_page(Report.of([made], title=HOSTILE, faults=[HOSTILE]))
    assert "<script>alert" not in page
    assert "<img" not in page
    tags = Read(page).tags
    assert sum(tag == "script" for tag, _ in tags) == 3
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "{{ 7*7 }}" in page


def test_of_many_artifacts_the_first_stand_side_by_side_and_that_is_said() -> None:
    made = [subject(number, f"a{number}", task_result(40 + number)) for number in range(1, 15)]
    assert "the first 12 of 14 artifacts, by place" in Read(render_page(Report.of(made, title="t"))).text


def test_data_for_scripts_cannot_end_its_element() -> None:
    text = script_data({"a": "</script><!--&\u2028"})
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"a": "</script><!--&\u2028"}


def test_names_may_be_broken_where_they_have_joints() -> None:
    assert str(breakable("a_b-c/<d>")) == "a_<wbr>b-<wbr>c/<wbr>&lt;d&gt;"


def test_folders_of_one_machine_do_not_travel() -> None:
    assert without_folders("tokenizer of /data/me/models/Tiny, and C:\\Users\\me\\x") == "tokenizer of Tiny, and x"
    assert without_folders("org/model at 3/4") == "org/model at 3/4"
    assert dict(pairs({"source": "/data/me/rows.jsonl", "n": 1200})) == {"source": "rows.jsonl", "n": "1,200"}


def test_what_is_not_in_the_registry_is_shown_with_what_is_known() -> None:
    text = Read(
        render_page(Report.of([subject(1, "gone", task_result(50), here=False, record={}, lineage=[])], title="t"))
    ).text
    assert "Known from its results only: it has no record in this registry." in text
    assert "No training curve of their own: gone" in text
