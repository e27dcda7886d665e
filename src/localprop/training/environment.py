"""What a result depends on besides its config."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import localprop


def describe_environment() -> dict[str, Any]:
    """Describe versions, device, threads, commit and command line.

    Example:
        >>> describe_environment()["localprop"]
        '0.1.0'
    """
    return {
        "localprop": localprop.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "accelerator": _describe_accelerator(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "commit": _find_commit(),
        "command": [_find_program(), *sys.argv[1:]],
    }


def _find_program() -> str:
    """The name of what runs, without its folder, which says something of this machine alone."""
    path = Path(sys.argv[0])
    return path.parent.name if path.name == "__main__.py" else path.name


def _describe_accelerator() -> str:
    if not torch.accelerator.is_available():
        return "None"
    accelerator = torch.accelerator.current_accelerator()
    if accelerator and accelerator.type == "cuda":
        return torch.cuda.get_device_name()
    return str(accelerator)


def _find_commit() -> str | None:
    """The commit of the package's checkout, with a "+" if its files differ from the commit.

    Returns:
        None for an installed package. Its directory may lie inside a checkout of something else,
        for instance in a virtual environment, so git must know the package's own files.
    """
    package = Path(localprop.__file__).parent
    if _run_git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _run_git(package, "rev-parse", "HEAD")
    changes = _run_git(package, "status", "--porcelain", "--", ".")
    return f"{commit}+" if commit and changes else commit


def _run_git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
