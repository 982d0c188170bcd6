# SPDX-License-Identifier: Apache-2.0
"""A training run as one self-contained web page.

What is read from the run's folder (cfg.OUTPUT_DIR), each part where it exists:

* `metrics.json`: Detectron2's JSONWriter, one line of scalars an iteration;
* `config.yaml`: the config of the run;
* `inference/<dataset>/`: `metrics.json` (numbers in percent by IoU type), `per_category.csv`,
  `*.png` (plots), `coco_instances_results.json` (detections).
"""

from vastdet.report.page import write_report

__all__ = ["write_report"]
