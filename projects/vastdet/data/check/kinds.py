# SPDX-License-Identifier: Apache-2.0
"""Every kind of trouble that a data check knows, with its wording."""

from vastdet.data.check.report import Kind

# Images
IMAGE_ID_DUPLICATE = Kind(
    "duplicate image id", "Several images share an id", "keeps the first image"
)
IMAGE_FILE_TWICE = Kind(
    "file listed twice", "The same file belongs to several image ids", is_problem=False
)
IMAGE_MISSING = Kind(
    "missing image", "There is no such image file", "drops the image with its boxes"
)
IMAGE_UNREADABLE = Kind(
    "unreadable image", "The image file cannot be decoded", "drops the image with its boxes"
)
IMAGE_WITHOUT_SIZE = Kind(
    "size not recorded",
    "The width or height of the image is not recorded as a positive number",
    "writes the size of the file, where files are looked at",
)
IMAGE_SIZE_WRONG = Kind(
    "wrong size",
    "The recorded size is not that of the upright image, so its boxes may not fit it either",
    "drops the image with its boxes",
)
IMAGE_ROTATED = Kind(
    "EXIF rotation",
    "The file is stored on its side; boxes must refer to the upright image",
    is_problem=False,
)
IMAGE_EMPTY = Kind("image without boxes", "The image has no annotation", is_problem=False)

# Annotations
BOX_MALFORMED = Kind("malformed box", "The bbox is not a list of four numbers", "drops the box")
BOX_NOT_FINITE = Kind("NaN or infinite box", "The bbox has NaN or infinite values", "drops the box")
BOX_DEGENERATE = Kind(
    "box without area", "The width or height is zero or negative", "drops the box"
)
BOX_OUTSIDE = Kind("box outside", "The box lies wholly outside of its image", "drops the box")
BOX_BEYOND = Kind(
    "box beyond the border",
    "The box reaches more than 1 pixel out of its image",
    "clips the box",
)
BOX_DUPLICATE = Kind(
    "duplicate box",
    "A box of the same category lies on this one (IoU of 0.99 or more)",
    "keeps the first box",
)
BOX_XYXY = Kind(
    "XYXY suspected",
    "The boxes look like [x1, y1, x2, y2], but COCO's are [x, y, width, height]; "
    "say which they are with --box-format",
)
CATEGORY_UNKNOWN = Kind(
    "unknown category", "The category id is not among the categories", "drops the box"
)
ANNOTATION_WITHOUT_IMAGE = Kind(
    "box of no image", "The image id is not among the images", "drops the box"
)
ANNOTATION_ID_DUPLICATE = Kind(
    "duplicate annotation id", "The id is missing or taken by an earlier box", "gives new ids"
)
ANNOTATION_ID_ZERO = Kind(
    "annotation id 0",
    "pycocotools takes a match with the box of id 0 for no match",
    "gives it a new id",
    is_problem=False,
)
CROWD = Kind("crowd", "Crowd regions are left out of training", is_problem=False)

# Categories
CATEGORY_ID_DUPLICATE = Kind(
    "duplicate category id", "Several categories share an id", "keeps the first category"
)
CATEGORY_WITHOUT_NAME = Kind("category without name", "The category has no name")
CATEGORY_NAME_DUPLICATE = Kind(
    "duplicate category name", "Several categories share a name", is_problem=False
)
CATEGORY_EMPTY = Kind("category without boxes", "The category has no box", is_problem=False)
CATEGORY_SPACE = Kind("other categories", "The categories differ from those of the category space")

# Category tree
TREE_CATEGORY_MISSING = Kind("category not in tree", "The tree has no node for the category")
TREE_CATEGORY_UNKNOWN = Kind(
    "tree category unknown", "The tree has a node for a category that the dataset lacks"
)
TREE_NODE_UNKNOWN = Kind("tree node unknown", "The tree refers to a node that it does not name")
TREE_INCONSISTENT = Kind(
    "tree inconsistent", "The tree's tables of parents and of children disagree"
)
TREE_CYCLE = Kind("tree cycle", "A node of the tree is its own ancestor")
