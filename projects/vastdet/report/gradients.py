# SPDX-License-Identifier: Apache-2.0
"""The section about the gradients of class logits, where a training measured them."""

import numpy as np

from vastdet.engine.gradient_history import FILE_NAME, GROUPS, GradientHistory
from vastdet.engine.gradient_report import SMOOTHED_SHARE, ratio, share_of_negatives, trailing_sums
from vastdet.evaluation.metrics import FREQUENCY_NAMES
from vastdet.report.charts import Series, line_chart
from vastdet.report.run_folder import Run
from vastdet.report.sections import Section, note

DEFINITION_NAMES = {"loss": "training loss", "cross_entropy": "cross-entropy"}
# What is said of one META_ARCHITECTURE alone.
ABOUT_ARCHITECTURES = {
    "CQDINO": "CQ-DINO keeps the ratio up by detecting only the selected categories. "
}


def gradients_section(run: Run) -> list[Section]:
    """Ratio of positive to negative gradients and share of hard negatives; none if not measured.

    Raises:
        ValueError: gradients.json is damaged.
    """
    file = run.folder / FILE_NAME
    if not file.is_file():
        return []
    history = GradientHistory.load(file)
    steps = [i + 1 for i in history.iterations]
    width = max(1, round(SMOOTHED_SHARE * len(steps)))

    def over_time(name: str) -> list[Series]:
        return [
            finite(label, steps, share_of_negatives(history, name, definition, width))
            for definition, label in DEFINITION_NAMES.items()
        ]

    shares = [Series(s.name, s.x, [100 * value for value in s.y]) for s in over_time("hard")]
    charts = [
        line_chart(over_time("positive"), title="Positive to negative gradient", log_y=True),
        line_chart(shares, title="Hard negatives in the gradient of negatives", y_label="percent"),
    ]
    groups = group_ratios(history, width)
    if len(groups) > 1:
        title = "Positive to negative gradient by frequency"
        charts.append(line_chart(groups, title=title, log_y=True))
    body = f'{note(text_of(history))}<div class="grid">{"".join(charts)}</div>'
    return [Section("gradients", "Gradients of the classifier", body)]


def text_of(history: GradientHistory) -> str:
    """What the charts show."""
    rule, value = history.subject.hard_negatives
    hard = (
        f"those of a probability of at least {value:g}"
        if rule == "probability"
        else f"the likeliest {value:.2g} of the classes of a prediction"
    )
    own = ABOUT_ARCHITECTURES.get(history.subject.architecture, "")
    return (
        "A positive is the logit of a prediction for the class of the object that it answers for; "
        "all others are negatives. With a plain classifier over a vast vocabulary they drown the "
        f"gradient of the right classes: it is diluted. {own}The "
        "ratio is the sum of the sizes of the gradients of positive logits over that of negative "
        "ones, measured while training, for the loss that is trained and for plain cross-entropy; "
        f"hard negatives are {hard}. Lines are over the last {SMOOTHED_SHARE:.0%} of the steps."
    )


def group_ratios(history: GradientHistory, width: int) -> list[Series]:
    """The ratio of rare, common and frequent categories, of those groups that there are."""
    steps = [i + 1 for i in history.iterations]
    found = []
    for group in GROUPS:
        positive, negative = (
            trailing_sums(history.group_sums(group, name), width)
            for name in ("positive", "negative")
        )
        series = finite(FREQUENCY_NAMES[group], steps, ratio(positive, negative))
        if series.y:
            found.append(series)
    return found


def finite(name: str, x: list[int], y: np.ndarray) -> Series:
    """A line through the points that are finite."""
    kept = np.isfinite(y)
    return Series(name, np.array(x)[kept].tolist(), y[kept].tolist())
