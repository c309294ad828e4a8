"""Pages of the documentation as programs: their blocks, in order, and what each must print.

A fenced block of ``sh`` or ``python`` is run. A block without a language is what the block before
it prints. A comment on the line before a block says what else it is:

``<!-- not run: WHY -->``
    it is only shown.
``<!-- planned: WHY -->``
    its commands are run with ``-n``, which both make and Snakemake take for a dry run.
``<!-- file: NAME -->``
    it is the content of a file, which is written.
``<!-- edit: NAME -->``
    each of its lines takes the place of the line of that file that starts with the same key.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUN = ("sh", "python")
SECONDS = 900
_FENCE = re.compile(
    r"^(?P<indent> *)(?:<!-- (?P<role>not run|planned|file|edit): (?P<what>[^\n]*?) -->\n\s*)?"
    r"```(?P<language>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d*)?(?:e[+-]?\d+)?(?![\w])")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes
    ----------
    language : str
        What stands behind the fence; empty for an output.
    text : str
        What stands in it.
    line : int
        Number of its first line in the page.
    role, what : str
        From the comment before it; empty without one.
    """

    language: str
    text: str
    line: int
    role: str
    what: str

    @property
    def is_run(self) -> bool:
        """Whether it is a program."""
        return self.language in RUN and self.role in ("", "planned")


def blocks(text: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    return [
        Block(
            match["language"].strip(),
            re.sub(rf"^{match['indent']}", "", match["text"], flags=re.MULTILINE),
            text.count("\n", 0, match.start("text")) + 1,
            match["role"] or "",
            match["what"] or "",
        )
        for match in _FENCE.finditer(text)
    ]


# --- what is printed ------------------------------------------------------------------------------


def same_line(shown: str, printed: str) -> bool:
    """Whether a line is the one shown: words alike, numbers to the digits shown.

    An ellipsis stands for anything, any white space for any other.
    """
    pieces = [
        ("...", None) if piece == "..." else (piece, _NUMBER.fullmatch(piece))
        for piece in re.split(rf"(\.\.\.|{_NUMBER.pattern})", " ".join(shown.split()))
    ]
    pattern, numbers = "", []
    for piece, number in pieces:
        if number:
            pattern += r"\s*(-?[\d.]+(?:e[+-]?\d+)?)"
            numbers.append(piece)
        elif piece == "...":
            pattern += ".*"
        else:
            pattern += r"\s*".join(map(re.escape, piece.split(" ")))
    found = re.fullmatch(rf"\s*{pattern}\s*", " ".join(printed.split()))
    return found is not None and all(map(_same_number, numbers, found.groups()))


def _same_number(shown: str, printed: str) -> bool:
    digits, _, power = shown.partition("e")
    if "." not in digits and not power:
        return shown == printed
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    try:
        return abs(float(shown) - float(printed)) <= 1.001 * unit
    except ValueError:
        return False


def same_lines(shown: Sequence[str], printed: Sequence[str]) -> bool:
    """Whether lines are those shown; a line of an ellipsis alone stands for any number of lines."""
    if not shown:
        return not printed
    if shown[0].strip() == "...":
        return any(same_lines(shown[1:], printed[start:]) for start in range(len(printed) + 1))
    return bool(printed) and same_line(shown[0], printed[0]) and same_lines(shown[1:], printed[1:])


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def is_shown(shown: str, printed: str) -> bool:
    """Whether what is shown stands, in one piece, in what was printed."""
    return same_lines(["...", *_lines(shown), "..."], _lines(printed))


# --- running --------------------------------------------------------------------------------------


class Runner:
    """Runs the blocks of one page in a folder, one after the other.

    Parameters
    ----------
    folder : Path
        Where they run.
    environment : dict
        Variables of the shell.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.names: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> str:
        """Run a block and return what it printed.

        Raises
        ------
        Exception
            Of a block of Python, as it comes.
        RuntimeError
            If a block of commands ends with an error that it does not print as one line.
        """
        return self._python(block) if block.language == "python" else self._shell(block)

    def _shell(self, block: Block) -> str:
        text = block.text
        if block.role == "planned":
            text = re.sub(r"(?m) *(#.*)?$", " -n", text.rstrip())
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        if done.returncode and not re.search(r"^error: ", done.stdout, re.MULTILINE):
            raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-3000:]}")
        return done.stdout

    def _python(self, block: Block) -> str:
        printed = io.StringIO()
        code = compile(ast.parse(block.text), f"line {block.line}", "exec")
        with contextlib.redirect_stdout(printed), _working_in(self.folder):
            exec(code, self.names)
        return printed.getvalue()

    def write(self, block: Block) -> None:
        """Write the file, or make the edit, that a block is."""
        path = self.folder / block.what
        if block.role == "file":
            path.write_text(block.text, encoding="utf-8")
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        for new in block.text.splitlines():
            key = new.partition(":")[0]
            (place,) = (k for k, line in enumerate(lines) if line.partition(":")[0] == key)
            lines[place] = new
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def differences(text: str, runner: Runner) -> list[str]:
    """Run a page; what is shown and was not printed, and what went wrong."""
    found: list[str] = []
    printed: str | None = ""  # None: of a block that is not run, or has failed
    for block in blocks(text):
        if block.role in ("file", "edit"):
            runner.write(block)
        elif block.is_run:
            try:
                printed = runner.run(block)
            except Exception as error:
                found.append(f"line {block.line}: {type(error).__name__}: {error}")
                printed = None
        elif block.language in RUN:
            printed = None
        elif not block.language and printed is not None and not is_shown(block.text, printed):
            found.append(f"line {block.line}: shown:\n{block.text}printed:\n{printed[-3000:]}")
    return found
