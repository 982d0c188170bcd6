# SPDX-License-Identifier: Apache-2.0
"""RT-DETR: a hybrid encoder of attention and convolutions (Zhao et al., 2024)."""
