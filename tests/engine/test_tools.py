# SPDX-License-Identifier: Apache-2.0
"""What the tools share."""

import argparse
from typing import NoReturn

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vastdet.engine.tools import add_register_argument, exit_status, register_datasets


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("wrong"), 2, "error: wrong\n"),
        (FileNotFoundError("no such file"), 2, "error: no such file\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_wrong_input_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture
) -> None:
    def fail() -> NoReturn:
        raise error

    assert exit_status(fail) == status
    assert capsys.readouterr().err == line


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_status(lambda: 1 // 0)


def test_status_of_what_was_run() -> None:
    assert exit_status(lambda: None) == 0
    assert exit_status(lambda: 1) == 1


def test_register_repeats_and_refuses_another_set_of_the_same_name() -> None:
    parser = argparse.ArgumentParser()
    add_register_argument(parser)
    assert parser.parse_args([]).register == []
    argv = ["--register", "tools_a", "a.json", "images", "--register", "tools_a", "b.json", "x"]
    try:
        with pytest.raises(ValueError, match="'tools_a' is taken"):
            register_datasets(parser.parse_args(argv))
    finally:
        DatasetCatalog.remove("tools_a")
        MetadataCatalog.remove("tools_a")
