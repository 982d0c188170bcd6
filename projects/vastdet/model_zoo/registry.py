# SPDX-License-Identifier: Apache-2.0
"""Every network whose published weights can be converted, by the name that the tool takes.

To add one: write a function that returns its `Converter`, a table with one `Pair` a tensor (see
`deformable_models.py`), and add a line to `CONVERTERS`. The name is that of our config up to the
number of epochs; a code base other than the authors' is its ending. The table decides about the
rest by itself: the tool builds the model of `Converter.config` and holds every tensor against it.
State in the table

* `classes` of every tensor that has a row a class: label embeddings (`ClassRows(after=1)` where one
  row more is never read), heads with "no object" (`after=1`), and proposal heads of which the first
  row alone is read (`ObjectnessRows`), or --coco-categories picks the wrong rows;
* `copies` where the files hold a tensor under several names;
* `aliases` where older files have another name, `parts` where they keep what is one tensor in ours
  in several;
* `constants` for what only our model has;
* `without_data` where our model asks a dataset for its categories;
* `twin` where the other code base can be imported, so that the tool compares outputs (`twins.py`).
"""

import difflib
from collections.abc import Callable
from functools import partial

from vastdet.model_zoo import (
    conditional_models,
    cq_dino_models,
    dab_deformable_models,
    deformable_models,
    dense_models,
    hybrid_models,
    mmdet_models,
    rt_detr_models,
    swin_models,
    torchvision_models,
)
from vastdet.model_zoo.centernet2_models import centernet2_converter
from vastdet.model_zoo.key_map import Converter
from vastdet.model_zoo.relation_models import relation_detr_converter
from vastdet.model_zoo.transformers_conditional_models import (
    conditional_detr_transformers_converter,
    dab_detr_transformers_converter,
)
from vastdet.model_zoo.transformers_models import (
    deformable_detr_transformers_converter,
    detr_transformers_converter,
)

CONVERTERS: dict[str, Callable[[], Converter]] = {
    **conditional_models.CONVERTERS,
    **cq_dino_models.CONVERTERS,
    "centernet2_R_50_FPN": centernet2_converter,
    "conditional_detr_R_50_transformers": conditional_detr_transformers_converter,
    "dab_detr_R_50_transformers": dab_detr_transformers_converter,
    "detr_R_50_transformers": detr_transformers_converter,
    "dab_deformable_detr_R_50": dab_deformable_models.dab_deformable_converter,
    "dn_deformable_detr_R_50": dab_deformable_models.dn_deformable_converter,
    "deta_R_50": deformable_models.deta_converter,
    "dino_R_50_4scale": deformable_models.dino_converter,
    "dino_R_50_4scale_detrex": deformable_models.dino_detrex_converter,
    "dino_R_50_4scale_mmdet": mmdet_models.dino_mmdet_converter,
    "dino_R_50_5scale": partial(deformable_models.dino_converter, num_levels=5),
    "dino_swin_L_4scale": deformable_models.dino_swin_converter,
    "dino_swin_L_5scale": partial(deformable_models.dino_swin_converter, num_levels=5),
    "h_deformable_detr_R_50": hybrid_models.h_deformable_detr_converter,
    "rank_detr_R_50": hybrid_models.rank_detr_converter,
    "fasterrcnn_resnet50_fpn": torchvision_models.faster_rcnn,
    "relation_detr_R_50": relation_detr_converter,
    "retinanet_resnet50_fpn": torchvision_models.retinanet,
    "fcos_resnet50_fpn": torchvision_models.fcos,
    **swin_models.CONVERTERS,
}
for _depth in torchvision_models.RESNETS:
    CONVERTERS[f"resnet{_depth}"] = partial(torchvision_models.resnet, _depth)
CONVERTERS["conditional_detr_R_101_transformers"] = partial(
    conditional_detr_transformers_converter, 101
)
CONVERTERS["detr_R_101_transformers"] = partial(detr_transformers_converter, 101)
for _name, _depth, _dc5 in (("R_50", 50, False), ("R_50_DC5", 50, True), ("R_101", 101, False)):
    CONVERTERS[f"panoptic_detr_{_name}"] = partial(
        dense_models.panoptic_detr_converter, _depth, dc5=_dc5
    )
for _depth in (50, 101):
    CONVERTERS[f"detr_R_{_depth}"] = partial(dense_models.detr_converter, _depth)
    CONVERTERS[f"detr_R_{_depth}_DC5"] = partial(dense_models.detr_converter, _depth, dc5=True)
for _variant in ("plain", "refined", "two_stage"):
    for _ending, _make in (
        ("", deformable_models.deformable_detr_converter),
        ("_mmdet", mmdet_models.deformable_detr_mmdet_converter),
        ("_transformers", deformable_detr_transformers_converter),
    ):
        CONVERTERS[f"deformable_detr_R_50_{_variant}{_ending}"] = partial(_make, _variant)
for _version, _depth in rt_detr_models.CONFIGS:
    _name = f"rt_detr{'v2' if _version == 2 else ''}_R_{_depth}"
    for _ending, _rt_detr in (
        ("", rt_detr_models.rt_detr_converter),
        ("_transformers", rt_detr_models.rt_detr_transformers_converter),
    ):
        CONVERTERS[_name + _ending] = partial(_rt_detr, _depth, version=_version)


def find_converter(name: str) -> Converter:
    """The converter of a name.

    Raises:
        ValueError: no converter has this name; the message lists the closest names, or all.
    """
    if name in CONVERTERS:
        return CONVERTERS[name]()
    close = difflib.get_close_matches(name, CONVERTERS, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"expected one of {known_names()}"
    raise ValueError(f"no weights are known as {name!r}; {hint}")


def known_names() -> list[str]:
    """All names, sorted."""
    return sorted(CONVERTERS)
