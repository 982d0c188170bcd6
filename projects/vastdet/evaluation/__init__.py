# SPDX-License-Identifier: Apache-2.0
"""Evaluators, tables and plots."""

from vastdet.evaluation.build import EVALUATOR_REGISTRY, build_evaluator
from vastdet.evaluation.coco import CocoEvaluator

__all__ = ["EVALUATOR_REGISTRY", "CocoEvaluator", "build_evaluator"]
