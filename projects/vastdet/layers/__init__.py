# SPDX-License-Identifier: Apache-2.0
"""Tensor operations and blocks."""
