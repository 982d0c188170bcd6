# SPDX-License-Identifier: Apache-2.0
"""Evaluators, tables and plots."""
