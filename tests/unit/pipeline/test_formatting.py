import pytest

from vision.pipeline.formatting import format_value, shorten


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456789, "0.123457"),
        (1.0, "1.0"),
        (1e-5, "1e-05"),
        (10, "10"),
        (4_294_967_295, "4294967295"),
        (True, "true"),
        (None, "null"),
        ("auto", "auto"),
        ([1.0, 0.5], "[1.0, 0.5]"),
    ],
)
def test_values_are_formatted_as_in_params_yaml(value: object, text: str) -> None:
    assert format_value(value) == text


def test_a_float_has_as_many_digits_as_wanted() -> None:
    assert format_value(2 / 3, digits=3) == "0.667"


def test_a_long_name_is_shortened_to_one_line() -> None:
    assert shorten("sea\nlion") == "sea lion"
    assert shorten("abcdef", length=6) == "abcdef"
    assert shorten("abcdefg", length=6) == "abcde…"
