# SPDX-License-Identifier: Apache-2.0
import re

from vastdet.report.tables import MAX_CATEGORY_ROWS, category_table, metrics_table


def names_in(table: str) -> list[str]:
    return re.findall(r'<th scope="row">([^<]*)', table)


def test_the_best_category_comes_first_and_undefined_last() -> None:
    rows = [
        {"name": n, "ap": a, "num_boxes": "3"} for n, a in zip("abc", ["5", "", "9"], strict=True)
    ]
    table = category_table(rows, "t")
    assert names_in(table) == ["c", "a", "b"]
    assert '<td data-value="">–</td>' in table


def test_a_vast_table_keeps_both_ends() -> None:
    rows = [{"name": f"n{i}", "ap": str(i / 1000), "frequency": "r"} for i in range(13204)]
    table = category_table(rows, "t")
    names = names_in(table)
    assert len(names) == MAX_CATEGORY_ROWS
    assert (names[0], names[-1]) == ("n13203", "n0")
    assert "best and worst of 13204" in table


def test_a_table_without_ap_or_name_still_shows() -> None:
    table = category_table([{"thing": "<x>", "score": "abc", "nothing": ""}], "t")
    assert names_in(table) == ["&lt;x&gt;"]
    assert "nothing" not in table


def test_metrics_have_meanings_and_groups() -> None:
    table = metrics_table(
        {"num_images": 4.0, "bbox/AP": 41.26, "bbox/APs": None, "bbox/groups/rare/AP": 3.0}
    )
    assert "41.3" in table
    assert "undefined" in table
    assert "AP rare" in table
    assert "num_images" not in table
    assert "No summary numbers" in metrics_table({})


def test_a_column_that_says_one_thing_is_left_out() -> None:
    rows = [{"name": n, "frequency": "f", "group": g, "ap": "1"} for n, g in ("ax", "by")]
    table = category_table(rows, "t")
    assert "frequency" not in table
    assert "group" in table
