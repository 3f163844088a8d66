from __future__ import annotations

from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from fedseg.document import MAX_BYTES, Document, Section, parse
from fedseg.errors import FedsegError, PlanError, PolicyError


class Wheel(Section):
    size_mm: Annotated[float, Field(gt=0)] = 700.0
    kind: Literal["spoked", "solid"] = "spoked"


class Bicycle(Section):
    name: str
    gears: Annotated[int, Field(ge=1)] = 1
    folding: bool = False
    wheels: tuple[Wheel, Wheel] = (Wheel(), Wheel())
    owners: dict[str, Wheel] = Field(default_factory=dict)


class Titled(Section):
    name: Annotated[str, Field(min_length=1)]


def read(text: str) -> Document[Bicycle]:
    return parse(text, Bicycle, name="my/bike.yaml", error=PlanError)


def refusal(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        read(text)
    return str(caught.value)


def test_lines_of_keys() -> None:
    document = read("# a comment\nname: x\nwheels:\n  - size_mm: 622\n  - kind: solid\nowners:\n  ann: {}\n")
    assert document.content.wheels == (Wheel(size_mm=622.0), Wheel(kind="solid"))
    assert document.where("name") == "my/bike.yaml:2"
    assert document.where("wheels", 1, "kind") == "my/bike.yaml:5"
    assert document.where("wheels", 1, "size_mm") == "my/bike.yaml:5"
    assert document.where("owners", "ann") == "my/bike.yaml:7"
    assert document.where("gears") == "my/bike.yaml:1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "name: x\ngears: 3\ngeers: 4\n",
            "my/bike.yaml:3: unknown key geers (did you mean gears? known here: name, gears",
        ),
        ("name: x\nzzz: 4\n", "my/bike.yaml:2: unknown key zzz (known here: name, gears, folding, wheels, owners)"),
        ("nam: x\n", "my/bike.yaml:1: unknown key nam (did you mean name? known here"),
        (
            "name: x\nowners:\n  ann:\n    sise_mm: 1\n",
            "my/bike.yaml:4: unknown key owners.ann.sise_mm (did you mean size_mm? known here: size_mm, kind)",
        ),
        ("gears: 3\n", "my/bike.yaml:1: name is missing"),
        ("name: x\n\ngears: three\n", "my/bike.yaml:3: gears: input should be a valid integer, not 'three'"),
        ("name: x\ngears: 0\n", "gears: input should be greater than or equal to 1, not 0"),
        ("name: x\ngears: 2.0\n", "my/bike.yaml:2: gears: input should be a valid integer"),
        ("name: 3\n", "name: input should be a valid string, not 3"),
        ("name: x\nfolding: yes\n", "folding: input should be a valid boolean, not 'yes'"),
        (
            "name: x\nowners: {ann: {kind: spokd}}\n",
            "owners.ann.kind: input should be 'spoked' or 'solid', not 'spokd' (did you mean spoked?)",
        ),
        ("name: x\nowners: {ann: {size_mm: .nan}}\n", "size_mm: input should be a finite number, not nan"),
        ("name: x\nowners: {ann: {size_mm: .inf}}\n", "size_mm: input should be a finite number, not inf"),
        ("name: x\nwheels: [{}]\n", "my/bike.yaml:2: wheels"),
        (
            "name: x\nname: y\n",
            'my/bike.yaml:2: not valid YAML: found duplicate key "name" (each key stands once: remove or rename one',
        ),
        (
            "name: x\nowners: [\n  1,\n  2\ngears: 3\n",
            "my/bike.yaml:2: not valid YAML: while parsing a flow sequence, ",
        ),
        ("name: [x\n", "my/bike.yaml:1: not valid YAML: while parsing a flow sequence, "),
        ("name: [x\n", "(is the [ that opens here closed?)"),
        ("name: {x\n", "(is the { that opens here closed?)"),
        ("name: x\x00\n", "my/bike.yaml: not valid YAML: unacceptable character #x0000"),
        ("name: x\x00\n", "(is this the right file?)"),
        ("", "my/bike.yaml: empty"),
        ("name:\n\t- x\n", "my/bike.yaml:2: not valid YAML: found character '\\t'"),
        ("name: x\n---\nname: y\n", "not valid YAML: but found another document"),
        ("", "my/bike.yaml: empty, or not a mapping of keys to values"),
        ("- a\n- b\n", "my/bike.yaml: empty, or not a mapping of keys to values"),
        ("#" * (MAX_BYTES + 1), "my/bike.yaml: longer than 256 KiB (is this the right file?)"),
        ("? [a, b]\n: 1\n", "my/bike.yaml: a key is not plain text"),
        ("name: " + "{a: " * 400 + "}" * 400, "my/bike.yaml: nested too deeply"),
        ("name: x\ngears: " + "9" * 5000, "my/bike.yaml: not valid YAML: Exceeds the limit"),
    ],
)
def test_mistakes_are_answered_with_line_and_what_is_allowed(text: str, says: str) -> None:
    assert says in refusal(text)


def test_no_empty_word_is_suggested() -> None:
    with pytest.raises(PlanError) as caught:
        parse("name: ''\n", Titled, name="p", error=PlanError)
    assert caught.value.hint is None


def test_the_error_is_of_the_class_asked_for() -> None:
    with pytest.raises(PolicyError, match="p: empty"):
        parse("", Bicycle, name="p", error=PolicyError)


@pytest.mark.parametrize("word", ["off", "NO", "no", "yes", "On", "y", "n"])
def test_words_are_words_as_in_yaml_1_2(word: str) -> None:
    assert read(f"name: {word}\n").content.name == word


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 1e-4), ("1E3", 1000.0), ("622", 622.0), ("0.5", 0.5), ("1.0e+2", 100.0)]
)
def test_numbers_are_numbers_as_in_yaml_1_2(text: str, value: float) -> None:
    document = read(f"name: x\nowners: {{ann: {{size_mm: {text}}}}}\n")
    assert document.content.owners["ann"].size_mm == value
    assert type(document.content.owners["ann"].size_mm) is float


def test_merged_keys_stand_where_their_mapping_does() -> None:
    text = "name: x\nowners:\n  ann: &small\n    size_mm: 400\n  ben:\n    <<: *small\n"
    assert read(text).content.owners["ben"].size_mm == 400.0
    assert "my/bike.yaml:7: unknown key owners.cy.sise_mm" in refusal(text + "  cy: {<<: *small, sise_mm: 1}\n")


def test_content_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        read("name: x\n").content.name = "y"


@given(st.text(max_size=80) | st.text(alphabet="name: {}[]&*!|>-?'\"\n\tx1", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        content = read(text).content
    except FedsegError as error:
        assert (error.where or "").startswith("my/bike.yaml")
    else:
        assert isinstance(content, Bicycle)
