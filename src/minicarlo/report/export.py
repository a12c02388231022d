"""The figures of a report as files: PDF for papers, PNG for slides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages

from minicarlo.files import atomic_path, output_error
from minicarlo.report.contents import Plot, Section

_DPI = 200
_NO_DATE = {"CreationDate": None, "ModDate": None}


def write_figures(folder: Path, hero: Plot, sections: Sequence[Section]) -> list[Path]:
    """Write every plot as `NAME.pdf` and `NAME.png`, and all of them with their titles as `figures.pdf`; return the paths.

    Raises OutputError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(folder, error) from error
    written: list[Path] = []
    with (
        atomic_path(folder / "figures.pdf") as together,
        PdfPages(together, metadata={**_NO_DATE, "Title": "minicarlo"}) as pages,
    ):
        for number, (where, plot) in enumerate(_plots(hero, sections)):
            stem = re.sub(r"[^a-z0-9]+", "-", f"{number:02d} {where} {plot.title}".lower()).strip("-")[:80]
            for kind, options in (("pdf", {"metadata": _NO_DATE}), ("png", {"dpi": _DPI})):
                target = folder / f"{stem}.{kind}"
                with atomic_path(target) as temporary:
                    plot.picture.save(temporary, format=kind, **options)
                written.append(target)
            plot.picture.save_page(pages, f"{where}: {plot.title}")
    return [*written, folder / "figures.pdf"]


def _plots(hero: Plot, sections: Sequence[Section]) -> Iterator[tuple[str, Plot]]:
    yield "Summary", hero
    for section in sections:
        for group in section.groups:
            for plot in group.plots:
                yield section.title, plot
