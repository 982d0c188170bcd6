# SPDX-License-Identifier: Apache-2.0
"""One-stage detectors with centre-ness on a feature pyramid, written once: FCOS, ATSS."""
