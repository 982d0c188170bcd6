# SPDX-License-Identifier: Apache-2.0
"""What the tools share."""

import argparse
import logging
import shutil
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from vastdet.engine.tools import add_register_argument, close_logs, exit_status, register_datasets


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


def test_both_kinds_of_datasets_are_registered_in_order() -> None:
    parser = argparse.ArgumentParser()
    add_register_argument(parser)
    argv = ["--register-v3det", "tools_a", "a.json", "images", "tree.json"]
    arguments = parser.parse_args([*argv, "--register", "tools_b", "b.json", "images"])
    try:
        register_datasets(arguments)
        assert MetadataCatalog.get("tools_a").evaluator_type == "v3det"
        assert MetadataCatalog.get("tools_a").category_tree == "tree.json"
        assert MetadataCatalog.get("tools_b").evaluator_type == "coco"
        assert [name for name, *_ in arguments.register] == ["tools_a", "tools_b"]
        assert parser.parse_args([]).register == []
    finally:
        for name in ("tools_a", "tools_b"):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.mark.parametrize(("rank", "name"), [(0, "log.txt"), (1, "log.txt.rank1")])
def test_a_folder_that_is_used_again_gets_a_new_log(tmp_path: Path, rank: int, name: str) -> None:
    folder, streams = tmp_path / "run", []
    for line in ("first", "second"):
        for logger in ("vastdet", "fvcore"):
            setup_logger(str(folder), rank, name=logger)
        streams.append(logging.getLogger("fvcore").handlers[-1].stream)
        logging.getLogger("vastdet").info(line)
        text = (folder / name).read_text()
        assert text.count("\n") == 1
        assert line in text
        close_logs()
        shutil.rmtree(folder)
    assert [stream.closed for stream in streams] == [True, True]
    assert logging.getLogger("vastdet").handlers == []


def test_other_streams_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("vastdet")
    with (tmp_path / "log.txt").open("w") as output, (tmp_path / "mine").open("w") as mine:
        # A run whose output goes to a file of that name.
        monkeypatch.setattr(sys, "stdout", output)
        for stream in (output, sys.stderr, mine):
            logger.addHandler(logging.StreamHandler(stream))
        logger.addHandler(logging.NullHandler())
        close_logs()
        assert logger.handlers == []
        assert [x.closed for x in (output, sys.stderr, mine)] == [False] * 3
