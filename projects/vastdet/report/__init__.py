# SPDX-License-Identifier: Apache-2.0
"""A training run as one self-contained web page.

What is read from the run's folder (cfg.OUTPUT_DIR), each part where it exists:

* `metrics.json`: Detectron2's JSONWriter, one line of scalars an iteration;
* `config.yaml`: the config of the run;
* `gradients.json`: what `ANALYSIS.GRADIENTS` measured while training;
* `inference/<dataset>/`: `metrics.json` (numbers in percent by IoU type), `per_category.csv`,
  `*.png` (plots), `coco_instances_results.json` (detections), `selected_categories.npz` (what a
  detector selects for an image before it detects).
"""

from vastdet.report.page import Part, write_joint_report, write_report

__all__ = ["Part", "write_joint_report", "write_report"]
