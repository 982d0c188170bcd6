# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.data`."""

from detectron2.config import CfgNode


def add_data_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.data` to `cfg` in place."""
    # Colour jitter in training, of images in RGB or BGR; each strength 0 = off.
    cfg.INPUT.COLOR_JITTER = CfgNode()
    # Factors are drawn from [1 - strength, 1 + strength].
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0
    # Hues turn by up to this part of the colour circle either way, at most 0.5.
    cfg.INPUT.COLOR_JITTER.HUE = 0.0

    # Resize to a square instead, whatever the shape of the image: its side is one of
    # MIN_SIZE_TRAIN, or MIN_SIZE_TEST; the MAX_SIZEs do not matter.
    cfg.INPUT.SQUARE = False

    # At inference, sides of the resized image come to the "nearest" pixel, as in Detectron2, or are
    # rounded "down", as in MMDetection's Grounding DINO and in the authors' code of CQ-DINO.
    cfg.INPUT.ROUNDING_TEST = "nearest"

    # Zoom out in training (SSD's expansion): the resized image shrinks and lands somewhere on a
    # grey canvas of its own size.
    cfg.INPUT.ZOOM_OUT = CfgNode()
    cfg.INPUT.ZOOM_OUT.PROB = 0.0
    # It shrinks by a factor from [1, MAX_RATIO].
    cfg.INPUT.ZOOM_OUT.MAX_RATIO = 4.0

    # Zoom in in training: a random part of the image is kept. INPUT.CROP is Detectron2's crop,
    # which cuts every image.
    cfg.INPUT.ZOOM_IN = CfgNode()
    cfg.INPUT.ZOOM_IN.PROB = 0.0
    # Height and width of the part are drawn from [MIN_RATIO, 1] times those of the image.
    cfg.INPUT.ZOOM_IN.MIN_RATIO = 0.5

    # Resize, cut, resize in training: the short side comes to one of MIN_SIZES, and a part of the
    # image with sides between the two CROP_SIZES is kept, before the resize that every image gets
    # (Carion et al. 2020, section 4; the sizes are theirs, in pixels).
    cfg.INPUT.RESIZE_CROP = CfgNode()
    cfg.INPUT.RESIZE_CROP.PROB = 0.0
    cfg.INPUT.RESIZE_CROP.MIN_SIZES = (400, 500, 600)
    cfg.INPUT.RESIZE_CROP.CROP_SIZES = (384, 600)
