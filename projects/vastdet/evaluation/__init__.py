# SPDX-License-Identifier: Apache-2.0
"""Evaluators, tables and plots."""

from vastdet.evaluation.build import EVALUATOR_REGISTRY, build_evaluator
from vastdet.evaluation.coco import CocoEvaluator, DetectionEvaluator

__all__ = ["EVALUATOR_REGISTRY", "CocoEvaluator", "DetectionEvaluator", "build_evaluator"]
