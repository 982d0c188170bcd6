# SPDX-License-Identifier: Apache-2.0
"""Config keys of `vastdet.engine`."""

from detectron2.config import CfgNode


def add_engine_config(cfg: CfgNode) -> None:
    """Add the keys of `vastdet.engine` to `cfg` in place."""
    solver = cfg.SOLVER
    # SGD (Detectron2's, with MOMENTUM and NESTEROV) or AdamW.
    solver.OPTIMIZER = "SGD"
    # Learning-rate factor of every parameter whose name starts with "backbone.".
    solver.BACKBONE_MULTIPLIER = 1.0
    # More factors: [regular expression, factor] pairs, searched in the parameter name. All that
    # match are multiplied.
    solver.LR_MULTIPLIERS = []
    # The same for the weight decay, on top of WEIGHT_DECAY and those of norms and biases. Recipes
    # of Swin without decay of norms say ["relative_position_bias_table", 0.0] besides.
    solver.WEIGHT_DECAY_MULTIPLIERS = []
    # The images a step that BASE_LR, STEPS, WARMUP_ITERS and MAX_ITER were chosen for; where
    # IMS_PER_BATCH differs, training says what they would be. 0 where nobody knows.
    solver.REFERENCE_BATCH_SIZE = 0
    # A step of IMS_PER_BATCH images runs as this many forward and backward passes.
    solver.ACCUMULATION_STEPS = 1
    # "parameter" clips each parameter's gradient by CLIP_TYPE, as Detectron2 does; "full_model"
    # scales all gradients by their common norm (CLIP_VALUE, NORM_TYPE).
    solver.CLIP_GRADIENTS.SCOPE = "parameter"
    # "bfloat16", "float16" (CUDA only), or "auto": bfloat16 where the device has it, else float16.
    solver.AMP.DTYPE = "auto"
    # Mixed precision at inference: evaluation, vastdet.engine.predictor, tools/benchmark.py.
    cfg.TEST.AMP = CfgNode()
    cfg.TEST.AMP.ENABLED = False
    cfg.TEST.AMP.DTYPE = "auto"

    # Exponential moving average of the weights: what is evaluated and saved as "model".
    solver.EMA = CfgNode()
    solver.EMA.ENABLED = False
    solver.EMA.DECAY = 0.9998
    # The decay of update t is DECAY * (1 - exp(-t / WARMUP)); 0 for a constant decay.
    solver.EMA.WARMUP = 2000

    # How many of the newest model_*.pth to keep; 0 keeps all.
    solver.CHECKPOINTS_KEPT = 3

    # Trade time for memory: recompute each block of the backbone in the backward pass.
    cfg.MODEL.ACTIVATION_CHECKPOINTING = False

    # What training does with an unreadable record: "skip" (counted and reported) or "raise".
    cfg.DATALOADER.BROKEN_RECORDS = "skip"
    # Stop when more than this fraction of the training records is broken.
    cfg.DATALOADER.MAX_BROKEN_FRACTION = 0.1

    # How the gradient of class logits is shared between positives and negatives, measured while
    # training (Sun et al. 2025, section 3.1): into metrics.json and OUTPUT_DIR/gradients.json.
    cfg.ANALYSIS = CfgNode()
    cfg.ANALYSIS.GRADIENTS = CfgNode()
    cfg.ANALYSIS.GRADIENTS.ENABLED = False
    # Every so many iterations.
    cfg.ANALYSIS.GRADIENTS.PERIOD = 20
    # Which negatives are hard: "probability", those of at least HARD_VALUE, or "top", this share of
    # the classes of each query.
    cfg.ANALYSIS.GRADIENTS.HARD_RULE = "probability"
    cfg.ANALYSIS.GRADIENTS.HARD_VALUE = 0.1
