"""README's path from a network of the user's to a page of results, as a newcomer would walk it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from localprop.cli.main import main

README = Path(__file__).parent.parent / "README.md"


def test_a_newcomers_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = README.read_text().partition("## From your network to a page of results")[2]
    section = section.partition("\n## ")[0]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    commands = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    commands = [each for each in commands if each.split()[0] in ("pip", "localprop")]
    assert code
    assert 3 <= len(commands) <= 10
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_code.py").write_text(code[1])
    for command in commands[1:]:  # all is installed
        assert main(shlex.split(command.partition("    #")[0])[1:]) == 0, capsys.readouterr().err
    page = (tmp_path / "page.html").read_text()
    assert "my_code.py:make on digits" in page
    assert "than the plain PyTorch loop" in page
    assert page.count('role="img"') > 8
