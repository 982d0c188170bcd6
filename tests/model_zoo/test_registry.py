# SPDX-License-Identifier: Apache-2.0
"""Every converter fits the model of its config, and MMDetection's names are those of a release."""

from pathlib import Path

import pytest

from vastdet.model_zoo.convert_file import expected_tensors, model_config
from vastdet.model_zoo.registry import CONVERTERS, find_converter, known_names


@pytest.mark.parametrize("name", list(CONVERTERS))
def test_a_table_holds_every_tensor_of_its_model(name: str) -> None:
    converter = find_converter(name)
    cfg, overrides = model_config(converter, {})
    assert overrides == ()
    model = expected_tensors(converter, cfg)
    assert {p.detectron2 for p in converter.pairs} | converter.constants.keys() == model.keys()
    for constant, value in converter.constants.items():
        assert model[constant].shape == value.shape
    sources = [n for p in converter.pairs for n in (p.source, *p.aliases, *p.copies, *p.parts)]
    assert len(set(sources)) == len(sources)


def test_an_unknown_name_is_told_the_closest() -> None:
    with pytest.raises(ValueError, match="did you mean dino_R_50_4scale"):
        find_converter("dino_R50_4scale")
    with pytest.raises(ValueError, match=r"expected one of \['"):
        find_converter("x")
    assert known_names() == sorted(CONVERTERS)


def test_names_of_mmdetection_are_those_of_a_release_of_its_dino(shared_data: Path) -> None:
    # CQ-DINO is MMDetection's DINO with another backbone, a classifier without weights, and one
    # norm more in a decoder layer.
    facts = shared_data.parent / "facts" / "state_dicts" / "cqdino_tree_swinb1k_v3det.txt"
    if not facts.is_file():
        pytest.skip(f"no list of names at {facts}")
    rows = (line.split("\t") for line in facts.read_text("utf-8").splitlines())
    listed = {name: shape for name, shape, *_ in (row for row in rows if len(row) > 2)}
    converter = find_converter("dino_R_50_4scale_mmdet")
    model = expected_tensors(converter, model_config(converter, {})[0])
    compared = 0
    for pair in converter.pairs:
        if pair.source.startswith("backbone.") or ".cls_branches." in pair.source:
            continue
        assert pair.source in listed
        depends = pair.source.startswith(("dn_query", "neck.convs", "neck.extra", "query_emb"))
        if not depends:
            assert listed[pair.source] == str(tuple(model[pair.detectron2].shape)), pair.source
            compared += 1
    assert compared > 270
