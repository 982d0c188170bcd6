# SPDX-License-Identifier: Apache-2.0
"""Category spaces: ids, names, hierarchy, frequency."""

from vastdet.vocabulary.frequency import frequency_groups
from vastdet.vocabulary.hierarchy import CategoryHierarchy
from vastdet.vocabulary.space import CategorySpace

__all__ = ["CategoryHierarchy", "CategorySpace", "frequency_groups"]
