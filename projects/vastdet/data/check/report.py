# SPDX-License-Identifier: Apache-2.0
"""What a data check found: one `Finding` a kind of trouble, gathered in a `Report`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vastdet.files import write_json

EXAMPLES_SHOWN = 3
EXAMPLES_SAVED = 100


@dataclass(frozen=True)
class Kind:
    """A kind of trouble: its key, what it means, and what `--fix` does about it ("" = nothing).

    A problem spoils training or scores; a note (`is_problem` False) is worth knowing and may be
    intended.
    """

    key: str
    meaning: str
    fix: str = ""
    is_problem: bool = True


@dataclass(frozen=True)
class Finding:
    """One kind of trouble with how often it occurs and the first offenders in words."""

    kind: Kind
    count: int
    examples: tuple[str, ...] = ()


@dataclass
class Report:
    """Everything that a check of one dataset found.

    Attributes:
        source: name of what was checked.
        num_images, num_annotations, num_categories: sizes of what was checked.
        num_images_read: how many image files were decoded; None: they were not looked at.
        findings: one a kind that occurs, in the order of the checks.
    """

    source: str
    num_images: int = 0
    num_annotations: int = 0
    num_categories: int = 0
    num_images_read: int | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, kind: Kind, examples: Sequence[str], count: int | None = None) -> None:
        """Record a kind of trouble unless it does not occur; `count` defaults to the examples."""
        count = len(examples) if count is None else count
        if count:
            self.findings.append(Finding(kind, count, tuple(examples[:EXAMPLES_SAVED])))

    @property
    def problems(self) -> list[Finding]:
        """The findings that spoil training or scores."""
        return [finding for finding in self.findings if finding.kind.is_problem]

    @property
    def notes(self) -> list[Finding]:
        """The findings that may be intended."""
        return [finding for finding in self.findings if not finding.kind.is_problem]

    @property
    def is_clean(self) -> bool:
        """Whether no problem was found; notes do not count."""
        return not self.problems

    def count(self, key: str) -> int:
        """How often the kind of trouble called `key` occurs."""
        return sum(finding.count for finding in self.findings if finding.kind.key == key)

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types for JSON."""
        return {
            "source": self.source,
            "clean": self.is_clean,
            "num_images": self.num_images,
            "num_annotations": self.num_annotations,
            "num_categories": self.num_categories,
            "num_images_read": self.num_images_read,
            "problems": [_plain(finding) for finding in self.problems],
            "notes": [_plain(finding) for finding in self.notes],
        }

    def save(self, path: str | Path) -> None:
        """Write the report as JSON, with up to 100 offenders of each kind."""
        write_json(path, self.to_dict(), indent=1)

    def print(self, console: Console | None = None) -> None:
        """Print the report as tables."""
        console = console or Console()
        for line in self._summary():
            console.print(line, highlight=False, soft_wrap=True)
        for title, style, findings in (
            ("Problems", "red", self.problems),
            ("Worth knowing", "yellow", self.notes),
        ):
            if findings:
                console.print(_table(title, style, findings))

    def _summary(self) -> Iterator[str]:
        read = self.num_images_read
        looked = "images not looked at" if read is None else f"{read:,} image files decoded"
        yield (
            f"[bold]{escape(self.source)}[/bold]: {self.num_images:,} images, "
            f"{self.num_annotations:,} boxes, {self.num_categories:,} categories; {looked}"
        )
        if self.is_clean:
            yield "[green]No problems found.[/green]"
        else:
            total = sum(finding.count for finding in self.problems)
            yield f"[red]{total:,} problems of {len(self.problems)} kinds.[/red]"


def _plain(finding: Finding) -> dict[str, Any]:
    kind = finding.kind
    return {
        "key": kind.key,
        "meaning": kind.meaning,
        "fix": kind.fix,
        "count": finding.count,
        "examples": list(finding.examples),
    }


def _table(title: str, style: str, findings: list[Finding]) -> Table:
    table = Table(title=title, title_style=f"bold {style}", title_justify="left", show_lines=True)
    table.add_column("what", no_wrap=True)
    table.add_column("count", justify="right")
    table.add_column("meaning, and first offenders", overflow="fold")
    for finding in findings:
        shown = [f"- {escape(example)}" for example in finding.examples[:EXAMPLES_SHOWN]]
        fix = f" --fix: {finding.kind.fix}." if finding.kind.fix else ""
        text = "\n".join([f"[bold]{finding.kind.meaning}.[/bold]{fix}", *shown])
        table.add_row(finding.kind.key, f"{finding.count:,}", text)
    return table
