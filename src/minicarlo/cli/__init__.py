"""The command line: one file per verb, imported when the verb is used."""

from __future__ import annotations

import importlib
import textwrap

import click

from minicarlo import __version__
from minicarlo.errors import MinicarloError, MissingExtra

_VERBS = {
    "simulate": "Simulate events with a reference Monte Carlo (Geant4).",
    "geant4-data": "Fetch the data sets that Geant4 needs.",
    "train": "Train a generator on an event set.",
    "optimise": "Rewrite a surrogate's graph into a faster one for the same showers.",
    "tune": "Lower a surrogate's precision as far as a criterion allows.",
    "audit": "Check that a network's low-precision kernels compute what they should.",
    "generate": "Generate events with a surrogate.",
    "validate": "Compare an event set with a reference, with uncertainties.",
    "bench": "Measure how fast a surrogate is, as ratios from one run.",
    "engines": "List the engines that can run a surrogate on this machine.",
    "report": "Write a page with the plots and tables of a comparison.",
    "export": "Write a surrogate or events as other programs load them (Par04, showerdata, Parquet, ROOT).",
    "info": "Show what a surrogate or an event set holds.",
    "demo": "Run the whole chain on what minicarlo ships and write a report.",
}


class _Verbs(click.Group):
    """Imports the module of a verb only when that verb is called, and turns a user's mistake into one paragraph."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = f"minicarlo.cli.{cmd_name.replace('-', '_')}"
        try:
            command = importlib.import_module(module).command
        except ModuleNotFoundError as error:
            if error.name == module:
                raise MissingExtra(f"The verb {cmd_name} is not part of this installation. Install minicarlo again.") from error
            raise _missing(error) from error
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}.command is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except MinicarloError as error:
            click.echo(paragraph(error), err=True)
            ctx.exit(error.exit_code)
        except ModuleNotFoundError as error:
            if _extra_of(error) is None:
                raise
            click.echo(paragraph(_missing(error)), err=True)
            ctx.exit(MissingExtra.exit_code)
        except KeyboardInterrupt:
            click.echo("Stopped.", err=True)
            ctx.exit(130)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="minicarlo")
def main() -> None:
    """Small neural generators in place of an expensive Monte Carlo.

    \b
    Example:
      minicarlo demo
      minicarlo generate clic-ecal -n 10000 --energy 1GeV:100GeV:log -o showers.h5
      minicarlo generate --help
    """


def paragraph(error: MinicarloError) -> str:
    """The message of an error as one wrapped paragraph that a terminal cannot misread."""
    text = "".join(character if character.isprintable() else " " for character in str(error))
    return textwrap.fill(f"Error: {' '.join(text.split())}", width=100, break_long_words=False, break_on_hyphens=False)


def _extra_of(error: ModuleNotFoundError) -> str | None:
    """The optional part of minicarlo that brings the missing module."""
    extras = {"torch": "train", "tensorboard": "train", "geant4_pybind": "geant4", "onnxruntime": "onnxruntime"}
    return extras.get((error.name or "").split(".")[0])


def _missing(error: ModuleNotFoundError) -> MissingExtra:
    extra = _extra_of(error)
    remedy = f"pip install 'minicarlo[{extra}]'" if extra else "pip install --force-reinstall minicarlo"
    return MissingExtra(f"The Python module {error.name} is not installed. Install it with: {remedy}")
