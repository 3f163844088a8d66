from __future__ import annotations

import csv
import re
from dataclasses import replace
from functools import lru_cache
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from typing import Any

import pytest

from fedseg.labels import FETA
from fedseg.metrics.comparison import compare
from fedseg.metrics.scores import METRICS
from fedseg.report import metric_words
from fedseg.report.figures import ERRORS, MAX_BYTES, Panel, Picture, View, overlay
from fedseg.report.html import evaluation_csv, evaluation_page, privacy_page
from tests.report.brains import AFFINE, brain
from tests.report.documents import ROUNDS, SITE, document, privacy, scores

NASTY = "sub-<script>alert('x')</script>\"&"
FLAGS = [
    {"kind": "age", "severity": "note", "what": "Not checked: no age", "hint": ""},
    {"kind": "cut", "severity": "error", "what": "cut by the field of view", "hint": "look at the top"},
]


@lru_cache
def picture() -> Picture:
    image, truth = brain()
    predicted = truth.copy()
    predicted[10:16, 12:20, 8:14] = 0
    return overlay(image, truth, predicted, AFFINE, FETA.tissues)


class Reader(HTMLParser):
    """Collects tags, what they load, the ids, and the text that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.named: list[str] = []
        self.unnamed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        known = {name: value or "" for name, value in attrs}
        if tag not in ("meta", "br"):
            self.open.append(tag)
        if tag == "th" and "scope" not in known:
            self.unnamed.append(tag)
        if tag == "svg" and "aria-labelledby" not in known and known.get("aria-hidden") != "true":
            self.unnamed.append(tag)
        self.ids += [known["id"]] if "id" in known else []
        self.named += known.get("aria-labelledby", "").split()
        self.loads += [value for name, value in known.items() if name in ("src", "href", "data", "action", "srcset")]
        assert not any(name.startswith("on") for name in known), "an event handler is a script"

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(" ".join(data.split()))


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open, "every tag is closed"
    return reader


def rows() -> list[Any]:
    return [scores("sub-1", 0.9, 0.8), scores("sub-2", 0.7, 0.6, age=30.0, site="zurich")]


def compared() -> dict[str, Any]:
    second = [replace(each, dice={name: value + 0.05 for name, value in each.dice.items()}) for each in rows()]
    documents = [document(*each) for each in (rows(), second)]
    for name, each in zip(("first.safetensors", "second.safetensors"), documents, strict=True):
        each["model"] = {"file": name} | each["model"]
    return {"models": documents, "comparisons": [{"first": 0, "second": 1, **compare(rows(), second).to_json()}]}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(lambda: evaluation_page(document(*rows()), {"sub-1": picture()}), id="evaluation"),
        pytest.param(lambda: evaluation_page(compared(), {"1:sub-1": picture()}), id="comparison"),
        pytest.param(lambda: evaluation_page(document(), {}), id="of nothing"),
        pytest.param(lambda: privacy_page(privacy()), id="privacy"),
    ],
)
def test_a_page_loads_nothing_and_runs_nothing(page: Any) -> None:
    text = page()
    reader = read(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "img"} & set(reader.tags)
    assert all(
        load.startswith("data:image/png;base64,") or load.removeprefix("#") in reader.ids for load in reader.loads
    )
    assert not re.search(r"https?:|@import|url\(", text)
    assert "default-src 'none'; img-src data:" in text
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert any(each.startswith("For research use only.") for each in reader.text)


def test_a_page_can_be_read_without_eyes() -> None:
    for page in (evaluation_page(document(*rows()), {"sub-1": picture()}), evaluation_page(compared(), {})):
        reader = read(page)
        levels = [int(tag[1]) for tag in reader.tags if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(second - first <= 1 for first, second in pairwise(levels)), "no level is left out"
        assert len(reader.ids) == len(set(reader.ids))
        assert set(reader.named) <= set(reader.ids)
        assert not reader.unnamed, "every picture has a name, every heading cell a scope"


def test_every_text_is_escaped() -> None:
    nasty = [scores(NASTY, 0.9, 0.8, site=NASTY, pathology=NASTY), scores("sub-2", 0.9, 0.8, site=NASTY, age=31.0)]
    one = document(*nasty) | {"model": {"study": NASTY, NASTY: NASTY, "file": NASTY}, "split": NASTY}
    one["subjects"][0]["flags"] = [{"kind": NASTY, "severity": "error", "what": NASTY, "hint": NASTY}]
    two = {"models": [one, one], "comparisons": [{"first": 0, "second": 1, **compare(nasty, nasty).to_json()}]}
    for page in (evaluation_page(one, {NASTY: picture()}), evaluation_page(two, {})):
        assert "script" not in read(page).tags
        assert "<script" not in page
        assert "sub-&lt;script&gt;" in page
    rounds = (replace(ROUNDS[0], contributors=(NASTY,), lost={NASTY: NASTY}),)
    facts = privacy(
        study=NASTY, sites=(replace(SITE, site=NASTY),), statement=NASTY, rounds=rounds, not_promised=(NASTY,)
    )
    assert "<script" not in privacy_page(facts)


def test_the_result_is_said_in_words() -> None:
    found = [*rows(), scores("sub-3", 0.5, 0.3, site="zurich", age=None)]
    data = document(*found) | {"split": "test"}
    for row in data["subjects"]:
        row["flags"] = FLAGS
    text = read(evaluation_page(data, {})).text
    low, high = data["summary"]["intervals"]["dice"]["mean"]
    start = f"Mean Dice 0.633 (95% interval {low:.3f} to {high:.3f}); mean HD95 1.88 mm (95% interval 1.88 to 1.88)."
    assert start in text
    assert (
        "3 subjects of 2 sites (leuven, zurich), 24 to 30 weeks of gestation (age of 1 scan unknown); "
        "scored: the subjects of the split test." in text
    )
    assert "Worst subject: sub-3 of zurich, mean Dice 0.400. Worst site: zurich, mean Dice 0.525." in text
    assert "Quality flags: 3 errors, 0 warnings, 3 notes." in text
    assert any(each.startswith("Means are over subjects") and "10000 resamples" in each for each in text)


def test_scans_come_worst_first_with_their_pictures_and_volumes() -> None:
    found = [scores("sub-good", 0.9, 0.9), scores("sub-bad", 0.3, 0.1), scores("sub-mid", 0.5, 0.6, age=None)]
    page = evaluation_page(document(*found), {"sub-bad": picture()})
    headings = re.findall(r"<h3>(sub-\w+)</h3>", page)
    assert headings == ["sub-bad", "sub-mid", "sub-good"]
    assert page.count('class="brain"') == 2
    text = read(page).text
    assert {"leuven, 24 weeks, spina bifida; mean Dice", "leuven, spina bifida; mean Dice", "81.3", "0.200"} <= set(
        text
    )
    assert "missed 0.4 mL" in text
    assert any(each.startswith("Through the largest error (R ") for each in text)
    assert any("(radiological convention)" in each for each in text)


def test_flags_stand_with_their_scan_and_the_serious_ones_together() -> None:
    data = document(*rows())
    data["subjects"][0]["flags"], data["subjects"][1]["flags"] = FLAGS, []
    text = read(evaluation_page(data, {})).text
    assert text.count("cut by the field of view") == 2
    assert text.count("Not checked: no age") == 1
    assert text.index("cut by the field of view") < text.index("Not checked: no age")
    assert text.count("look at the top") == 1
    assert "No quality flag." in text
    data["subjects"][0]["flags"] = []
    assert "No error and no warning." in read(evaluation_page(data, {})).text


def test_flags_that_nobody_looked_for_are_not_passed_over() -> None:
    text = read(evaluation_page(document(*rows()), {})).text
    assert sum("nobody looked for any" in each.lower() for each in text) == 4


def test_runs_of_one_subject_have_their_own_rows_and_pictures() -> None:
    found = [scores("sub-1", 0.9, 0.8, run="sub-1_run-1"), scores("sub-1", 0.5, 0.4, run="sub-1_run-2")]
    page = evaluation_page(document(*found), {"sub-1_run-1": picture(), "sub-1_run-2": picture()})
    assert page.count('class="brain"') == 4
    assert re.findall(r"<h3>(sub-.+)</h3>", page) == ["sub-1_run-2", "sub-1_run-1"]
    assert any(each.startswith("1 subject (2 scans) of 1 site (leuven)") for each in read(page).text)


def test_what_is_missing_is_said() -> None:
    page = evaluation_page(document(scores("sub-1", 0.9, 0.0, hd=None)), {})
    assert "Values left out of the means: HD95 mm of ventricles: 1; ASD mm of ventricles: 1." in page
    assert "<td>\N{EN DASH}</td>" in page
    assert "There is no interval with fewer than three subjects." in page
    assert "nan" not in page.lower().split()
    assert "No value is missing." in evaluation_page(document(scores("sub-1", 0.9, 0.1)), {})


def test_groups_have_tables_where_there_are_several() -> None:
    found = [*rows(), scores("sub-3", 0.1, 0.2, site=None, pathology="neurotypical")]
    text = read(evaluation_page(document(*found), {})).text
    for caption in ("site", "pathology", "gestational age, weeks"):
        assert f"By {caption}: means over tissues and subjects" in text
    alone = read(evaluation_page(document(rows()[0]), {})).text
    assert not any(each.startswith("By site") or each.startswith("By pathology") for each in alone)


def test_plots_are_there_where_there_is_something_to_draw() -> None:
    page = evaluation_page(document(*rows()), {})
    for title in ("Dice by tissue", "Dice by site", "HD95 mm by tissue", "HD95 mm by site"):
        assert f">{title}</title>" in page
    assert page.count(">Mean Dice by gestational age</title>") == 1
    assert page.count("Volume of ") >= 2
    alone = evaluation_page(document(scores("sub-1", 0.9, 0.8)), {})
    assert "Dice by tissue" in alone
    assert "Dice by site" not in alone
    assert "By gestational age" not in alone, "one age is no curve"


def test_sites_that_nobody_named_are_no_legend() -> None:
    unnamed = [scores("sub-1", 0.9, 0.8, site=None), scores("sub-2", 0.8, 0.8, site=None, age=30.0)]
    page = evaluation_page(document(*unnamed), {})
    assert "By gestational age" in page and "not named" not in page and 'class="sample"' not in page
    some = evaluation_page(document(*unnamed, scores("sub-3", 0.8, 0.8, site="wien")), {})
    assert "</svg>site not named</span>" in some and "</svg>wien</span>" in some


def test_brain_tissue_is_shown_without_fluid() -> None:
    kept = []
    for subject, age in (("sub-1", 24.0), ("sub-2", 30.0)):
        one = scores(subject, 0.9, 0.8, age=age)
        volumes = {tissue: 10.0 + place for place, tissue in enumerate(FETA.tissues)}
        each = dict.fromkeys(FETA.tissues, 0.9)
        found: dict[str, Any] = dict.fromkeys(METRICS, each)
        found |= {"volume_ml": volumes, "reference_volume_ml": dict.fromkeys(volumes, 8.0)}
        kept.append(replace(one, **found))
    page = evaluation_page(document(*kept), {})
    assert "brain tissue 68.0 mL (reference 40.0 mL)" in page
    assert ">Volume of brain tissue by gestational age</title>" in page
    assert "sub-1, predicted 68.0 mL" in page and "without ventricles and external CSF" in page
    assert "brain tissue" not in evaluation_page(document(*rows()), {}).lower()


def test_a_model_that_must_stay_is_said_to() -> None:
    told = document(*rows())
    assert "must not be handed on" not in evaluation_page(told, {})
    told["model"]["privacy"] = {"mode": "off", "never_hand_on": "not private\x1b[31m: <b>"}
    assert "must not be handed on: not private[31m: &lt;b&gt;." in evaluation_page(told, {})


def test_two_models_are_compared() -> None:
    data = compared()
    page = evaluation_page(data, {"0:sub-1": picture()})
    text = read(page).text
    assert "second.safetensors against first.safetensors" in text
    assert "Second minus first: second.safetensors minus first.safetensors, 2 subjects." in text
    assert "+0.050" in text
    assert "p = 0.500" in text
    assert data["comparisons"][0]["test"] + "." in " ".join(text)
    assert all(note in text for note in data["comparisons"][0]["notes"])
    assert ">Mean Dice of each scan: first.safetensors and second.safetensors</title>" in page
    assert [each for each in text if each.endswith(": the result")] == [
        "first.safetensors: the result",
        "second.safetensors: the result",
    ]
    assert "The pictures are with another model." in text


def test_a_value_that_only_one_model_has_is_no_difference() -> None:
    first = [scores("sub-1", 0.9, 0.8, hd=None)]
    both = {
        "models": [document(*first)] * 2,
        "comparisons": [{"first": 0, "second": 1, **compare(first, first).to_json()}],
    }
    text = read(evaluation_page(both, {})).text
    assert "\N{EN DASH}" in text
    assert "None" not in " ".join(text)


def test_every_metric_is_explained_and_none_else() -> None:
    assert tuple(metric_words.METRICS) == METRICS
    page = evaluation_page(document(*rows()), {})
    assert all(metric.meaning.split("'")[0] in page for metric in metric_words.METRICS.values())


def test_the_model_is_named_by_hash_study_and_privacy() -> None:
    text = read(evaluation_page(document(*rows()) | {"split": "all"}, {})).text
    assert {"atlas", "plan hash", "a" * 64, '{"mode": "off", "epsilon": null}', "evaluated with"} <= set(text)
    assert any(each.endswith("; all subjects were scored.") for each in text)


def test_a_scan_takes_less_than_200_kb_of_the_page() -> None:
    png = bytes(MAX_BYTES // 18)
    panel = Panel("axial", ("R", "L"), (90.0, 90.0), (0.5, 0.5), png, png, png)
    views = (View("Through the middle", (0.0, 0.0, 0.0), (panel,) * 3),) * 2
    largest = Picture(views, dict.fromkeys(ERRORS, 1.0))
    assert MAX_BYTES - largest.size < 18
    values: dict[str, Any] = {
        metric: dict.fromkeys(FETA.tissues, 0.123) for metric in (*METRICS, "reference_volume_ml")
    }
    many = [replace(scores(f"sub-{each}", 0.9, 0.8), **values) for each in range(2)]
    data = [document(*many[:count]) for count in (1, 2)]
    for each in data:
        for row in each["subjects"]:
            row["flags"] = [{"severity": "warning", "kind": "k", "what": "w" * 200, "hint": "h" * 200}] * 12
    one, two = (evaluation_page(each, {"sub-0": largest, "sub-1": largest}) for each in data)
    assert len(two.encode()) - len(one.encode()) < 200_000


def test_an_evaluation_of_nothing_is_a_page_too() -> None:
    assert "0 subjects." in read(evaluation_page(document(), {})).text


def test_csv_has_a_line_for_each_scan_and_tissue() -> None:
    text = evaluation_csv(document(scores("sub-1", 0.9, 0.5, hd=None, age=None), scores('a,"b', 0.2, 0.4)))
    lines = list(csv.DictReader(StringIO(text)))
    assert [line["subject"] for line in lines] == ["sub-1", "sub-1", 'a,"b', 'a,"b']
    assert lines[1] == {
        "subject": "sub-1",
        "run": "",
        "site": "leuven",
        "gestational_age_weeks": "",
        "pathology": "spina bifida",
        "tissue": "ventricles",
        "dice": "0.5",
        "hd95_mm": "",
        "volume_similarity": "0.5",
        "euler_difference": "3",
        "asd_mm": "",
        "nsd": "0.5",
        "volume_ml": "6.5",
        "reference_volume_ml": "6.5",
    }


def test_csv_of_several_models_says_which() -> None:
    lines = list(csv.DictReader(StringIO(evaluation_csv(compared()))))
    assert [line["model"] for line in lines] == ["first.safetensors"] * 4 + ["second.safetensors"] * 4
