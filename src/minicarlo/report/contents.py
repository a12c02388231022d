"""What a report consists of: sections of plots and tables."""

from __future__ import annotations

from dataclasses import dataclass

from minicarlo.report.figure import Picture
from minicarlo.report.scores import Cell, Grid


@dataclass(frozen=True)
class Note:
    """A line of a caption: a verdict on one candidate."""

    candidate: int
    verdict: Cell
    text: str


@dataclass(frozen=True)
class Plot:
    """A picture with its caption."""

    title: str
    picture: Picture
    caption: str = ""
    notes: tuple[Note, ...] = ()


@dataclass(frozen=True)
class Group:
    """Plots in so many columns below a heading."""

    title: str
    plots: tuple[Plot, ...]
    columns: str = "three"


@dataclass(frozen=True)
class Section:
    """A heading that the contents lists, with plots, and tables below them."""

    title: str
    text: str = ""
    groups: tuple[Group, ...] = ()
    tables: tuple[tuple[str, Grid], ...] = ()

    @property
    def slug(self) -> str:
        """For addresses within the page and names of files."""
        return self.title.lower().replace(" ", "-")
