"""Lists of numbers as people type them."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from bokeh_ops.adapter.conditions import K
from bokeh_ops.errors import BokehError
from bokeh_ops.numbers import MOST_VALUES, PerDioptre, all_f_numbers, format_value, parse_values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", [4.0]),
        ("0, 4, 8, 12, 18, 28", [0, 4, 8, 12, 18, 28]),
        ("0 4;8\n12\t18,28", [0, 4, 8, 12, 18, 28]),
        (" , 1.5,, .5 ;5. ", [1.5, 0.5, 5.0]),
        ("4，8、12；18", [4, 8, 12, 18]),
        ("-30, −3, +3, 1e1", [-30, -3, 3, 10]),
        ("0:30:5", [0, 5, 10, 15, 20, 25, 30]),
        ("0:30:7", [0, 7, 14, 21, 28]),
        ("0 : 1 : 0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("30:0:-10", [30, 20, 10, 0]),
        ("3:3:1", [3]),
        ("0, 2:6:2, 28", [0, 2, 4, 6, 28]),
        (7, [7.0]),
        (2.5, [2.5]),
        ([0, 4.5], [0, 4.5]),
        ((3,), [3]),
        (torch.tensor([1.0, 2.0]), [1, 2]),
        (torch.tensor(3.0).numpy(), [3]),
    ],
)
def test_numbers_are_read(text: object, expected: list[float]) -> None:
    values = parse_values(text)  # type: ignore[arg-type]
    assert values == expected  # exactly: a range is counted in decimals
    assert all(type(value) is float for value in values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no value"),
        (" , ;\n", "no value"),
        ([], "no value"),
        ("0, four, 8", "'four' is not a number"),
        ("K=4", "'K=4' is not a number"),
        ("4-8", "'4-8' is not a number"),
        ("0, nan", "'nan' is not a finite"),
        ("inf", "'inf' is not a finite"),
        ("1e999", "'1e999' is not a finite"),
        ("0:30", "start:stop:step"),
        ("0:30:5:1", "start:stop:step"),
        ("0:x:5", "'x' in '0:x:5'"),
        ("0::5", "'' in '0::5'"),
        ("0:inf:5", "not a finite"),
        ("0:30:0", "never gets"),
        ("0:30:1e-999", "never gets"),
        ("0:30:-5", "never gets"),
        ("30:0:5", "never gets"),
        ("0:30:1e-300", "more than 4096"),
        ("-1e308:1e308:1e-300", "more than 4096"),
        ("1," * (MOST_VALUES + 1), "more than 4096"),
        (math.nan, "finite"),
        ([1, math.inf], "finite"),
        ([1, None], "None is not a number"),
        ([1, "2"], "'2' is not a number"),
        (True, "True is not a number"),
        (None, "None is not a number"),
        (torch.zeros(2, 2), "not a number"),
    ],
)
def test_what_cannot_be_read_is_named(text: object, message: str) -> None:
    with pytest.raises(BokehError) as raised:
        parse_values(text, "pivot K")  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert str(raised.value).startswith("pivot K: ")


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (4.0, "4"),
        (4.5, "4.5"),
        (10.1288, "10.13"),
        (30, "30"),
        (100.0, "100"),
        (0.0, "0"),
        (-0.0, "0"),
        (-30.0, "-30"),
        (0.1 + 0.2, "0.3"),
        (0.001234, "0.0012"),
        (0.999, "1"),
    ],
)
def test_labels_are_short(value: float, label: str) -> None:
    assert format_value(value) == label


def test_k_outside_the_trained_range_is_told() -> None:
    assert K.outside([0, 12.5, 30]) is None
    assert K.outside([]) is None
    for value, label in ((-30.0, "-30"), (30.5, "30.5"), (math.nan, "nan")):
        warning = K.outside([4.0, value])
        assert warning is not None
        assert f"K = {label} is outside 0 to 30" in warning


def test_numbers_may_carry_their_unit() -> None:
    values = parse_values(" 10.5, 0:8:4 px/dioptre ")
    assert values == [10.5, 0, 4, 8]
    assert all(isinstance(value, PerDioptre) for value in values)
    assert all(isinstance(value, PerDioptre) for value in parse_values(values))
    assert not any(isinstance(value, PerDioptre) for value in parse_values("10.5, 4"))
    with pytest.raises(BokehError, match="no value was given"):
        parse_values("px/dioptre")


def test_f_numbers_where_the_camera_is_known() -> None:
    """K goes by 1 / N: of a camera whose K at f/2 is 9, f/1 has 18."""
    camera = PerDioptre(9.0, 2.0)
    values = parse_values("f/1, 0, F2.8 f4; 3:5:1", camera=camera)
    assert values == pytest.approx([18, 0, 9 * 2 / 2.8, 4.5, 3, 4, 5])
    assert [type(value) for value in values[:2]] == [PerDioptre, float]
    assert [getattr(value, "f_number", None) for value in values[:3]] == [1.0, None, 2.8]
    assert parse_values(values[2])[0].f_number == 2.8  # type: ignore[union-attr]
    kept = copy.deepcopy(camera)
    assert (kept, kept.f_number) == (9.0, 2.0)
    for unknown in (None, 9.0, PerDioptre(9.0)):
        with pytest.raises(BokehError, match="'f/2' is an f-number, and becomes a K only with a camera"):
            parse_values("0, f/2", camera=unknown)
    with pytest.raises(BokehError, match="'f/0' is no aperture"):
        parse_values("f/0", camera=camera)
    with pytest.raises(BokehError, match="is not a number"):
        parse_values("f/1.2.3", camera=camera)


def test_f_numbers_where_numbers_are_f_numbers() -> None:
    """In a list of f-numbers, and where nothing is made of them but labels."""
    assert parse_values("f/1.8, 4, F11", "f-number", stops=True) == [1.8, 4, 11]
    with pytest.raises(BokehError, match=r"f-number: '1\.2\.3' in 'f/1\.2\.3' is not a number"):
        parse_values("f/1.2.3", "f-number", stops=True)
    assert all_f_numbers(" f/1.8;f/4 ")
    assert not all_f_numbers("f/1.8, 4")
