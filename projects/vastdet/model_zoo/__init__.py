# SPDX-License-Identifier: Apache-2.0
"""Names to configs and weights; converters."""
