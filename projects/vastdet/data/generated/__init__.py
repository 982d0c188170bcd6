# SPDX-License-Identifier: Apache-2.0
"""The generated dataset: scenes of shapes, rendered on the fly, with 10 to 20,000 categories."""

from vastdet.data.generated.catalog import register_all_generated, register_generated
from vastdet.data.generated.categories import GeneratedCategories, generated_categories
from vastdet.data.generated.render import Scene, render_scene
from vastdet.data.generated.scene import Layout, SceneConfig, SceneObject
from vastdet.data.generated.splits import GeneratedSplit

__all__ = [
    "GeneratedCategories",
    "GeneratedSplit",
    "Layout",
    "Scene",
    "SceneConfig",
    "SceneObject",
    "generated_categories",
    "register_generated",
    "render_scene",
]

register_all_generated()
