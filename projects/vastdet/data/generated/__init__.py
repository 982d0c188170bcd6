# SPDX-License-Identifier: Apache-2.0
"""The generated dataset: scenes of overlapping shapes in 10 to 20,000 categories, made on the fly.

Importing this registers `generated_<K>_<split>` with Detectron2 for K in 10, 24, 50, 100, 500,
1000, 5000, 13000, 20000 and these splits, whose scenes never coincide:

    train       categories drawn by Zipf's law (exponent 0.3 to 0.7, growing with K)
    val         categories drawn uniformly
    open_train  as train, without the held-out compositions (a fifth of the categories, "novel")
    open_val    as val, with them; every attribute value of a novel category is in a base one

`generated_kinds_<K>_<train|val>` for K in 50, 1000, 5000, 13000 have shapes as categories above
others: an object whose fill has no category of its own is labelled by its shape (`KindsSplit`).

What an annotation means: the box is that of the visible extent of the object, so what another
object, an occluder or the image edge hides does not count. An object of which less than
`SceneConfig.min_visible` would show is left out of the picture, so all that is drawn is annotated;
strokes, arcs and jagged fragments are clutter and belong to no category.

`GeneratedSplit` describes any other set, `render_scene` renders one scene, `register_generated`
gives a set a name, `tools/generate_dataset.py` writes one to disk.
"""

from vastdet.data.generated.catalog import register_all_generated, register_generated
from vastdet.data.generated.categories import GeneratedCategories, generated_categories
from vastdet.data.generated.kinds import KindsSplit, register_all_kinds, register_kinds
from vastdet.data.generated.render import Scene, render_scene
from vastdet.data.generated.scene import Layout, SceneConfig, SceneObject
from vastdet.data.generated.splits import GeneratedSplit

__all__ = [
    "GeneratedCategories",
    "GeneratedSplit",
    "KindsSplit",
    "Layout",
    "Scene",
    "SceneConfig",
    "SceneObject",
    "generated_categories",
    "register_generated",
    "register_kinds",
    "render_scene",
]

register_all_generated()
register_all_kinds()
