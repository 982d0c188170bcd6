# SPDX-License-Identifier: Apache-2.0
"""Backbones that Detectron2 lacks."""
