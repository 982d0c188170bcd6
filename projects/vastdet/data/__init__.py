# SPDX-License-Identifier: Apache-2.0
"""Datasets, mappers, loaders and the generated dataset."""
