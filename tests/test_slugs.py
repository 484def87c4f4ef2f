"""Names of files that every file system accepts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsin.base.slugs import LONGEST, RESERVED, first_name, slug, stems


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tiger cat", "tiger_cat"),
        ("blocks.4:30@3,4", "blocks_4_30_3_4"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\con|a?*.png", "c_con_a_png"),
        ("Größe, Ångström", "groe_angstrom"),
        ("\N{FULLWIDTH LATIN CAPITAL LETTER A}\N{LATIN SMALL LIGATURE FI}", "afi"),
        ("line\nbreak\0nul\u202eright", "line_break_nulright"),
        ("日本語", ""),
        ("", ""),
        ("x" * 300, "x" * LONGEST),
    ],
)
def test_a_slug_has_small_letters_digits_and_underscores(text, expected):
    assert slug(text) == expected


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("3 (goldfish, Carassius auratus)", "goldfish"),
        ("goldfish, Carassius auratus", "goldfish"),
        ("7 (crane (bird))", "crane (bird)"),
        ("crane (bird), x", "crane (bird), x"),
        ("direction(conv2, 1, 2)", "direction(conv2, 1, 2)"),
        ("conv2:1@3,4", "conv2:1@3,4"),
        ("12", "12"),
    ],
)
def test_the_first_name_of_a_class_is_without_its_index_and_synonyms(label, expected):
    assert first_name(label) == expected


def test_names_that_are_equal_are_numbered_in_their_order():
    assert stems([("a", "Cat"), ("b",), ("a", "cat!"), ("a", "dog")], "x") == [
        "a-cat-000",
        "b",
        "a-cat-001",
        "a-dog",
    ]
    many = stems([("cat",)] * 1001, "x")
    assert many == sorted(many)
    assert many[0] == "cat-0000"


def test_a_number_is_never_one_that_another_name_has():
    assert stems([("cat", "000"), ("cat",), ("cat",)], "x") == ["cat-000", "cat-001", "cat-002"]


def test_where_no_letter_is_left_the_technique_stands_first():
    assert stems([("3",), ("日本語",), ("0.1",)], "class model") == [
        "class_model-3",
        "class_model",
        "class_model-0_1",
    ]
    assert stems([("日本語",)], "日本語") == ["picture"]


@given(st.lists(st.lists(st.text(max_size=80) | st.sampled_from(sorted(RESERVED)), max_size=3), max_size=12))
def test_any_names_become_different_and_safe_ones(names):
    made = stems(names, "x")
    assert len({name.lower() for name in made}) == len(names)
    for name in made:
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
        assert len(name) < 200
        assert name not in RESERVED
        assert name[0] not in "-_"
    assert made == stems(names, "x")
