# SPDX-License-Identifier: Apache-2.0
"""Category names as a text encoder should read them, and sentences around them."""

import re
from collections.abc import Sequence

# The single-template prompt of CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4).
DEFAULT_TEMPLATES = ("a photo of a {}.",)
# Templates by name: the bare name, CLIP's prompt, and objects as they stand in a scene (size,
# place, what hides them), whose embeddings are averaged.
TEMPLATE_SETS: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "photo": DEFAULT_TEMPLATES,
    "scene": (
        "a photo of a {}.",
        "a photo of the {}.",
        "a close-up of a {}.",
        "a small {} far away.",
        "a large {} in front.",
        "a photo with a {} in it.",
        "a {} at the edge of a photo.",
        "a {} that is partly hidden.",
        "a blurred photo of a {}.",
        "a dark photo of a {}.",
    ),
}
VOWELS = "aeiou"
# "a {}" or "an {}", whose article follows the name; the letter before it must not be a letter.
ARTICLE = re.compile(r"\b(a|A)n?(?= \{\})")


def readable_name(name: str) -> str:
    """A category name as plain text: `bow_(weapon)` becomes `bow (weapon)`.

    Underscores become spaces, runs of white space one space. The qualifier that LVIS puts in
    parentheses stays, since it tells `bow_(weapon)` from `bow_(decorative_ribbons)`.
    """
    spaced = name.replace("_", " ").replace("(", " (")
    return re.sub(r"\s+", " ", spaced).replace("( ", "(").strip()


def fill_template(template: str, name: str) -> str:
    """`template` with its `{}` replaced by a readable name, and `a` or `an` before it made to fit.

    The article goes by the first letter (an apple, a bus), not by sound.

    Raises:
        ValueError: the template does not hold `{}` exactly once.
    """
    if template.count("{}") != 1:
        raise ValueError(
            f"prompt template {template!r} holds {template.count('{}')} times '{{}}'; "
            "write it once, where the category name goes, as in 'a photo of a {}.'"
        )
    vowel = name[:1].lower() in VOWELS
    fitted = ARTICLE.sub(lambda match: match[1] + ("n" if vowel else ""), template)
    return fitted.replace("{}", name)


def fill_templates(names: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """One string a category and template: K lists of `len(templates)` strings."""
    if isinstance(templates, str) or not templates:
        raise ValueError(f"templates must be a list of at least one string, got {templates!r}")
    readable = [readable_name(name) for name in names]
    return [[fill_template(template, name) for template in templates] for name in readable]


def find_templates(values: Sequence[str]) -> tuple[str, ...]:
    """The templates that `values` name: a set of `TEMPLATE_SETS`, or templates themselves.

    Raises:
        ValueError: no value, a name of no set, or a set among other values.
    """
    if len(values) == 1 and values[0] in TEMPLATE_SETS:
        return TEMPLATE_SETS[values[0]]
    for value in values:
        if value.count("{}") != 1:
            raise ValueError(
                f"{value!r} is no template, which holds '{{}}' once, and not the name of a set "
                f"given alone; the sets are {', '.join(TEMPLATE_SETS)}"
            )
    if not values:
        raise ValueError(f"no template given; write one, or one of {', '.join(TEMPLATE_SETS)}")
    return tuple(values)
