"""Licences as the Hub knows them."""

import pytest

from cptjax.machine.licences import LICENCES, licence


@pytest.mark.parametrize(
    ("written", "identifier"),
    [("cc-by-4.0", "cc-by-4.0"), (" CC BY 4.0 ", "cc-by-4.0"), ("MIT License", "mit"), ("The Unlicense", "unlicense")],
)
def test_a_licence_is_known_however_it_is_written(written, identifier):
    # Broken by: .lower() left out; "the" and "license" not passed over.
    assert licence(written) == identifier and identifier in LICENCES


def test_a_licence_without_an_identifier_has_a_name():
    # Broken by: `len(words) > 1` made `> 3`.
    assert licence("PhysioNet  Licence 1.5.0") == "PhysioNet Licence 1.5.0"


@pytest.mark.parametrize(
    ("written", "nearest"),
    [
        ("apache2", "apache-2.0"),
        ("GPL3", "gpl-3.0"),
        ("cc-by-4", "cc-by-4.0"),
        ("zzz", "apache-2.0, mit"),
        ("cc-by-nc-n", "nearest: cc-by-nc-"),
        ("unlicens", "(nearest: unlicense)"),
    ],
)
def test_an_unknown_identifier_is_answered_with_the_nearest(written, nearest):
    # Broken by: n=0 for the nearest; the list that stands in for none; "nearest are", also of one.
    with pytest.raises(ValueError, match=r"^'.*' is no licence that the Hugging Face Hub knows \(nearest: ") as refused:
        licence(written)
    assert nearest in str(refused.value)
