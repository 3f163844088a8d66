from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedseg.errors import DataError
from fedseg.imaging.label_tables import TABLES, class_map, named_table, parse_dseg_tsv
from fedseg.labels import BRAIN_MASK, FETA, LabelScheme, display_name, dseg_tsv, scheme

CSF, CGM, WM, VEN, CBM, DGM, BST = range(1, 8)

# The sheet's table (fetal_mri.md), by hand: protocol -> index -> FeTA class.
SHEET = {
    "feta": {1: CSF, 2: CGM, 3: WM, 4: VEN, 5: CBM, 6: DGM, 7: BST},
    "fidon": {4: CSF, 5: CGM, 1: WM, 8: WM, 2: VEN, 3: CBM, 6: DGM, 7: BST},
    "drawem": {1: CSF, 4: CSF, 2: CGM, 3: WM, 5: VEN, 6: CBM, 7: DGM, 9: DGM, 8: BST},
    "bounti": {1: CSF, 2: CSF, 3: CGM, 4: CGM, 5: WM, 6: WM, 10: BST}
    | dict.fromkeys((7, 8, 9, 18, 19), VEN)
    | dict.fromkeys((11, 12, 13), CBM)
    | dict.fromkeys((14, 15, 16, 17), DGM),
}


@pytest.mark.parametrize("protocol", sorted(TABLES))
def test_known_tables_map_as_the_sheet_says(protocol: str) -> None:
    assert class_map(TABLES[protocol], FETA, protocol) == {0: 0} | SHEET[protocol]


@pytest.mark.parametrize(
    ("name", "tissue"),
    [
        ("Gray Matter", CGM),
        ("Cortical_grey-matter", CGM),
        ("Right Cortex", CGM),
        ("Corpus Callosum", WM),
        ("WM_L", WM),
        ("eCSF", CSF),
        ("3rd ventricle", VEN),
        ("Lateral Ventricles (left)", VEN),
        ("Subcortical gray matter", DGM),
        ("Brain-Stem", BST),
        ("Cerebellar hemispheres", CBM),
    ],
)
def test_synonyms(name: str, tissue: int) -> None:
    table = {**TABLES["feta"], 40: name}
    assert class_map(table, FETA, "dseg.tsv")[40] == tissue


@given(st.permutations(range(1, 8)))
def test_numbers_mean_nothing_names_everything(numbers: list[int]) -> None:
    table = {number: display_name(tissue) for number, tissue in zip(numbers, FETA.tissues, strict=True)}
    mapped = class_map(table, FETA, "dseg.tsv")
    assert {FETA.tissues[mapped[number] - 1] for number in numbers} == set(FETA.tissues)
    assert all(display_name(FETA.tissues[mapped[number] - 1]) == table[number] for number in numbers)


def test_unknown_name_lists_found_known_and_nearest() -> None:
    with pytest.raises(DataError) as caught:
        class_map({**TABLES["feta"], 5: "cerebelum"}, FETA, "site/dseg.tsv")
    message = str(caught.value)
    assert message.startswith("site/dseg.tsv: label names that are not known: 5 'cerebelum'")
    assert "found: 0 'background', 1 'external cerebrospinal fluid'" in message
    assert "known: background, external cerebrospinal fluid, cortical grey matter" in message
    assert "did you mean 'cerebellum'?" in message


def test_tissue_without_a_name_is_refused() -> None:
    table = {index: name for index, name in TABLES["feta"].items() if index != 7}
    with pytest.raises(DataError, match=r"no label stands for brainstem; found: 0 'background'"):
        class_map(table, FETA, "dseg.tsv")


def test_brain_is_not_a_tissue_of_feta() -> None:
    with pytest.raises(DataError, match="9 'brain'"):
        class_map({**TABLES["feta"], 9: "brain"}, FETA, "dseg.tsv")


def test_brain_mask_takes_all_but_background() -> None:
    assert class_map({0: "background", 1: "wm", 2: "lesion", 3: "Unknown"}, BRAIN_MASK, "x") == {0: 0, 1: 1, 2: 1, 3: 0}


def test_parse_dseg_tsv_with_mark_blanks_and_more_columns() -> None:
    text = "\ufeffindex\tname\tcolor\r\n1\tWhite matter\t#fff\r\n\r\n0\tbackground\t#000\r\n"
    assert parse_dseg_tsv(text, "dseg.tsv") == {1: "White matter", 0: "background"}
    assert parse_dseg_tsv("Index,Name\n1,wm\n", "labels.csv") == {1: "wm"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "dseg.tsv: the label table is empty"),
        ("index\tname\n", "a header and no rows"),
        ("label\ttitle\n1\twm\n", "no columns index and name; it has: label, title"),
        ("index\tname\none\twm\n", "the index 'one' is not a whole number"),
        ("index\tname\n-1\twm\n", "the index '-1' is not a whole number"),
        ("index\tname\n1\t\n", "index 1 has no name"),
        ("index\tname\n1\n", "index 1 has no name"),
        ("index\tname\n1\twm\n1\tcsf\n", "index 1 is listed twice: 'wm' and 'csf'"),
    ],
)
def test_parse_dseg_tsv_refuses(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_dseg_tsv(text, "dseg.tsv")
    assert message in str(caught.value)


@pytest.mark.parametrize("which", [FETA, BRAIN_MASK])
def test_own_table_reads_back(which: LabelScheme) -> None:
    own = scheme(which.name)
    assert own is which
    table = parse_dseg_tsv(dseg_tsv(own), "dseg.tsv")
    assert class_map(table, own, "dseg.tsv") == {index: index for index in range(own.classes)}
    assert dseg_tsv(own).splitlines()[0] == "index\tname\tabbreviation\tcolor\tmapping"


def test_unknown_table_suggests() -> None:
    with pytest.raises(DataError, match=r"no label table 'bonti'.*did you mean 'bounti'"):
        named_table("bonti")
