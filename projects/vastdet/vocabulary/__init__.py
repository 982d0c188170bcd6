# SPDX-License-Identifier: Apache-2.0
"""Category spaces: ids, names, hierarchy, frequency."""
