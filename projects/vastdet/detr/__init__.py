# SPDX-License-Identifier: Apache-2.0
"""The set-prediction skeleton that the DETR family is made of: parts, not switches."""
