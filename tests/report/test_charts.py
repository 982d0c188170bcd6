# SPDX-License-Identifier: Apache-2.0
import re

import pytest

from vastdet.report.charts import (
    MAX_POINTS,
    Series,
    format_number,
    line_chart,
    make_axis,
    make_log_axis,
    thin,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.02, "0.02"), (1.5, "1.5"), (2000, "2k"), (12500, "12.5k"), (1e-5, "1e-05")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_an_axis_covers_its_values_with_round_ticks() -> None:
    axis = make_axis([3.0, 87.0], 200, 0, from_zero=True, num_ticks=5)
    assert axis.ticks == (0, 20, 40, 60, 80, 100)
    assert (axis(0), axis(100)) == (200, 0)


@pytest.mark.parametrize("values", [[0.0], [5.0], [-2.0], [1e-9, 1e-9], [1e9]])
@pytest.mark.parametrize("from_zero", [True, False])
def test_a_constant_has_an_axis_too(values: list[float], from_zero: bool) -> None:
    axis = make_axis(values, 0, 100, from_zero=from_zero, num_ticks=5)
    assert axis.high > axis.low
    assert 0 <= axis(values[0]) <= 100


def test_long_series_are_thinned_to_means() -> None:
    thinned = thin(Series("a", list(range(1000)), [2.0] * 999 + [5.0]))
    assert len(thinned.x) == len(thinned.y) == MAX_POINTS
    assert thinned.y[0] == 2.0
    assert thinned.x[0] == 1.0
    assert 2.0 < thinned.y[-1] < 5.0


def test_points_lie_inside_the_picture() -> None:
    chart = line_chart([Series("a", [0, 5, 9], [1.0, -4.0, 7.5])], title="t")
    points = re.search(r'points="([^"]+)"', chart)
    assert points is not None
    for point in points[1].split():
        x, y = map(float, point.split(","))
        assert 52 <= x <= 448
        assert 12 <= y <= 224


def test_text_is_escaped_and_nothing_to_draw_is_said() -> None:
    chart = line_chart([Series("<b>", [0], [1.0])], title="<i>", y_label="<u>")
    assert not re.search("<[biu]>", chart)
    assert "nothing recorded yet" in line_chart([Series("a", [], [])], title="Loss")


def test_points_of_one_iteration_stand_at_the_right_end() -> None:
    chart = line_chart([Series("a", [300], [1.0]), Series("b", [300], [2.0])], title="t")
    places = [float(x) for x in re.findall(r'<circle [^>]*cx="([0-9.]+)"', chart)]
    ticks = re.findall(r'text-anchor="middle">([^<]+)<', chart)
    assert ticks == ["0", "100", "200", "300"]
    (scale,) = re.findall(r'data-scale="([^"]+)"', chart)
    assert places == [float(scale.split()[3])] * 2


def test_a_logarithmic_axis_has_powers_of_ten_and_leaves_out_zeros() -> None:
    chart = line_chart([Series("a", [0, 1, 2], [0.0, 0.02, 4.0])], title="t", log_y=True)
    for label in (">0.01<", ">0.1<", ">1<", ">10<"):
        assert label in chart
    assert "a ends at 4" in chart
    assert " data-log " in chart
    (points,) = re.findall(r'points="([^"]+)"', chart)
    assert len(points.split()) == 2
    assert " data-log" not in line_chart([Series("a", [0, 1], [1.0, 2.0])], title="t")
    assert "nothing recorded yet" in line_chart([Series("a", [0], [0.0])], title="t", log_y=True)


def test_a_logarithmic_axis_of_one_value() -> None:
    axis = make_log_axis([0.0], 100, 0)
    assert (axis.low, axis.high) == (0, 1)
    assert [round(10**t) for t in axis.ticks] == [1, 2, 5, 10]
