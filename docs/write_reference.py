"""Write the pages of the reference: which public name stands on which page.

    python docs/write_reference.py

mkdocstrings fills the pages from the docstrings when the site is built.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import localprop as lp
from localprop import analysis, data, loggers, models

FOLDER = Path(__file__).parent / "reference"
# Of each page its title, and the packages and modules of localprop whose names it has.
PAGES = {
    "training": (
        "Train, plan and compare",
        (
            "learner",
            "commands",
            "model_check",
            "planning",
            "training",
            "experiments",
            "report",
            "ranks",
        ),
    ),
    "methods": ("Methods and their parts", ("methods",)),
    "rules": ("Parts of rules", ("rule",)),
    "tasks": ("Tasks", ("tasks",)),
    "networks": ("Layers, partitions and schedules", ("network", "schedule")),
    "errors": ("Errors", ("errors",)),
}
OF_PACKAGES = {
    "models": ("Models", models),
    "data": ("Data", data),
    "analysis": ("What modules learn", analysis),
    "loggers": ("Logs", loggers),
}
HOSTS = ("localprop.hosts.transformers.LocalTrainer", "localprop.hosts.lightning.LocalLearning")


def list_paths() -> Iterator[str]:
    """The public names of localprop that are not those of the packages with pages of their own."""
    apart = {"methods", *OF_PACKAGES}
    apart |= {name for _, package in OF_PACKAGES.values() for name in package.__all__}
    for name in sorted(set(lp.__all__) - apart, key=lambda name: (name.lower(), name)):
        if not name.startswith("__"):
            yield find_path(getattr(lp, name), name)


def find_path(value: object, name: str) -> str:
    """Where a class or function is defined; what has no such place is found by its module."""
    module = getattr(value, "__module__", "")
    if module.startswith("localprop"):
        return f"{module}.{name}"
    for place, each in sorted(sys.modules.items()):
        if place.startswith("localprop.") and name in getattr(each, "__all__", ()):
            return f"{place}.{name}"
    raise LookupError(f"{name} is in no __all__ of a module that was imported.")


def build_pages() -> dict[Path, str]:
    """The text of each page, by its path."""
    found: dict[str, list[str]] = {page: [] for page in PAGES}
    for path in list_paths():
        package = path.split(".")[1]
        (page,) = (name for name, (_, packages) in PAGES.items() if package in packages)
        found[page].append(path)
    texts = {page: format_page(PAGES[page][0], paths) for page, paths in found.items()}
    for page, (title, package_of_names) in OF_PACKAGES.items():
        names = sorted(package_of_names.__all__, key=str.lower)
        paths = [find_path(getattr(package_of_names, name), name) for name in names]
        texts[page] = format_page(f"{title}: `lp.{page}`", paths)
    texts["hosts"] = format_page("In the loops of others", list(HOSTS))
    return {FOLDER / f"{page}.md": text for page, text in texts.items()}


def format_page(title: str, paths: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {path}" for path in paths)]) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for path, text in build_pages().items():
        path.write_text(text)
