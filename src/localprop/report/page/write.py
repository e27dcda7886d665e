"""Write the page of some results, and its tables and charts beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from localprop.errors import BadInput, check, collect_problems
from localprop.report.page.anatomy import Anatomy, read_anatomy
from localprop.report.page.palette import DARK, LIGHT, name_colours
from localprop.report.page.results import Group, read_groups
from localprop.report.page.sections import list_fronts, make_section
from localprop.report.page.tables import format_csv, format_latex, format_markdown
from localprop.training.config import Config
from localprop.writing.charts import INSTALL, check_path, write_chart
from localprop.writing.files import write_text


def write_page(
    paths: Iterable[str | Path],
    out: str | Path,
    progress: Callable[[str], object] = lambda line: None,
) -> list[Path]:
    """Write one HTML file that shows results, and CSV, Markdown, LaTeX and PNG beside it.

    The page needs no network: style, script and charts are in it.

    Args:
        paths: directories of `compare --out` and `train --out`, or files of `compare --json`.
        out: the file, which ends in .html; the others have its name and other endings.
        progress: called with what is being done.

    Returns:
        The files.

    Raises:
        BadInput: there is no result, a file is damaged, or jinja2 or matplotlib is missing.
        RunFailed: a file cannot be written.
    """
    problems: list[str] = []
    with collect_problems(problems):
        out = check_path(out, (".html",))
    with collect_problems(problems):
        _require_jinja()
    with collect_problems(problems):
        groups = read_groups(paths)
    check(problems)
    out, anatomies, notes = Path(out), dict[Config, Anatomy](), dict[Config, str]()
    for config in dict.fromkeys(method.config for group in groups for method in group.methods):
        progress(f"looking at {config.phases or config.method} on {config.model}")
        try:
            anatomies[config] = read_anatomy(config)
        except BadInput as error:
            notes[config] = " ".join(error.problems)
    groups = [_fill_in_peaks(group, anatomies) for group in groups]
    progress("drawing")
    sections = [
        make_section(number, group, anatomies, notes) for number, group in enumerate(groups)
    ]
    written = {
        out: _render(sections),
        out.with_suffix(".csv"): format_csv(groups),
        out.with_suffix(".md"): format_markdown(groups),
        out.with_suffix(".tex"): format_latex(groups),
    }
    for path, text in written.items():
        write_text(path, text)
    return [*written, *_write_fronts(groups, out)]


def _require_jinja() -> None:
    try:
        import jinja2  # noqa: F401
    except ImportError as error:
        raise BadInput(f"A page needs jinja2 ({error}): {INSTALL}.") from error


def _fill_in_peaks(group: Group, anatomies: dict[Config, Anatomy]) -> Group:
    """Take predicted peaks where none was measured, as on the CPU for single runs."""
    methods = [
        method
        if method.peak_bytes is not None or method.config not in anatomies
        else replace(method, peak_bytes=anatomies[method.config].values.memory.peak_bytes)
        for method in group.methods
    ]
    return replace(group, methods=tuple(methods))


def _render(sections: Sequence[dict[str, Any]]) -> str:
    import jinja2

    folder = resources.files("localprop.report.page")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text("utf-8")),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("page.html.jinja").render(
        sections=sections, light=name_colours(LIGHT), dark=name_colours(DARK)
    )


def _write_fronts(groups: Sequence[Group], out: Path) -> Iterator[Path]:
    for number, group in enumerate(groups, start=1):
        for what, caption, _, draw in list_fronts(group):
            end = f"-{what}" if len(groups) == 1 else f"-{number}-{what}"
            path = out.with_name(f"{out.stem}{end}.png")
            figure = draw(LIGHT, [method.label for method in group.methods])
            write_chart(figure, path, title=caption)
            yield path
