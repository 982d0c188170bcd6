# SPDX-License-Identifier: Apache-2.0
"""Category names as a text encoder should read them, and sentences around them."""

import re
from collections.abc import Sequence

# The single-template prompt of CLIP (Radford et al. 2021, arXiv 2103.00020, section 3.1.4).
DEFAULT_TEMPLATES = ("a photo of a {}.",)
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
