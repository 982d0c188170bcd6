# SPDX-License-Identifier: Apache-2.0
"""Text encoders, and embeddings of categories kept with their names and ids."""

from vastdet.text.category_embeddings import (
    CategoryEmbeddings,
    embed_categories,
    random_embeddings,
)
from vastdet.text.embedding_file import (
    add_category_embeddings,
    load_category_embeddings,
    read_category_embeddings,
    save_category_embeddings,
)
from vastdet.text.encoders import TEXT_ENCODER_REGISTRY, TextEncoder, build_text_encoder
from vastdet.text.projection import Projection

__all__ = [
    "TEXT_ENCODER_REGISTRY",
    "CategoryEmbeddings",
    "Projection",
    "TextEncoder",
    "add_category_embeddings",
    "build_text_encoder",
    "embed_categories",
    "load_category_embeddings",
    "random_embeddings",
    "read_category_embeddings",
    "save_category_embeddings",
]
