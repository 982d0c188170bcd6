# SPDX-License-Identifier: Apache-2.0
"""A class loss of some of the classes, for vocabularies of thousands.

N layers, B images, Q queries, K classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vastdet.detr.losses import ClassLoss


class FederatedLoss(ClassLoss):
    """Another loss, of the classes of the batch and of others that chance picks.

    The federated loss of CenterNet2 on LVIS (Zhou et al. 2021): the classes of the boxes, and
    others up to a number, drawn without replacement in proportion to a power of their frequency.
    The logits of the rest get no gradient. All layers of a call look at the same classes; processes
    draw for themselves.
    """

    def __init__(
        self, loss: ClassLoss, *, num_classes: int, class_weights: Callable[[], Tensor]
    ) -> None:
        """Take the parts.

        Args:
            loss: of the classes that are looked at.
            num_classes: as many classes, or those of the batch where these are more.
            class_weights: gives (K,) numbers of at least 0, in proportion to which other classes
                are drawn; asked once, at the first loss: a model that only detects needs none.
        """
        self.loss = loss
        self.num_classes = num_classes
        self._read_weights = class_weights
        self._weights: Tensor | None = None

    def quality(self, iou: Tensor, giou: Tensor) -> Tensor:
        """That of the other loss."""
        return self.loss.quality(iou, giou)

    def per_query(self, logits: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
        """See `ClassLoss`; draws by torch's generator of the CPU."""
        classes = self.draw(labels, logits.shape[-1]).to(labels.device)
        place = labels.new_full((logits.shape[-1],), -1)
        place[classes] = torch.arange(len(classes), device=labels.device)
        own_labels = torch.where(labels >= 0, place[labels.clamp(min=0)], -1)
        return self.loss.per_query(logits.index_select(-1, classes), own_labels, ious)

    def draw(self, labels: Tensor, num_all: int) -> Tensor:
        """The classes of `labels`, and others, ascending.

        Raises:
            ValueError: there is not a weight for each of the `num_all` classes.
        """
        if self._weights is None:
            self._weights = self._read_weights().cpu()
        if len(self._weights) != num_all:
            raise ValueError(
                f"the federated loss has weights of {len(self._weights)} classes, but there are "
                f"logits of {num_all}; make NUM_CLASSES that of the training set"
            )
        present = labels[labels >= 0].unique().cpu()
        others = self._weights.clone()
        others[present] = 0
        wanted = min(self.num_classes - len(present), int((others > 0).sum()))
        if wanted <= 0:
            return present
        return torch.cat([present, others.multinomial(wanted)]).sort().values
