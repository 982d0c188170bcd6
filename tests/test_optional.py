# SPDX-License-Identifier: Apache-2.0
"""Packages that are not installed are named, with the way out."""

import pytest

from vastdet.optional import require_packages


def test_names_the_first_package_that_is_absent() -> None:
    require_packages("json", purpose="Files", install="x")
    with pytest.raises(ImportError, match=r"Files need .* no_such_one, .*pip install 'x\[y\]'"):
        require_packages("json", "no_such_one", "nor_this", purpose="Files", install="x[y]")
