# SPDX-License-Identifier: Apache-2.0
"""The train_net of a Detectron2 user, who added the two lines marked below and nothing else."""

from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch

import vastdet  # the first line


def main(args):
    cfg = get_cfg()
    vastdet.add_vastdet_config(cfg)  # the second line
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, args=(args,))
