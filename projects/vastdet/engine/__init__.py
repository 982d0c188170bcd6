# SPDX-License-Identifier: Apache-2.0
"""Trainer, hooks, optimiser groups, checkpointing."""
