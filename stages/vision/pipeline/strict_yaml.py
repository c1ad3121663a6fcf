"""Read a YAML file as DVC reads it: YAML 1.2, parsed by ruamel.yaml. Anchors, aliases and large files are refused."""

import stat
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import CollectionEndEvent, CollectionStartEvent, NodeEvent

from vision.pipeline.errors import UserError
from vision.pipeline.validation import printable

MAX_BYTES = 2**18
MAX_DEPTH = 50


def read_yaml(path: Path) -> Any:
    """Read a YAML file that a user edits.

    Raises:
        UserError: the file is missing, not a regular file, too large, or not valid YAML in UTF-8. The message is one
            line, with the line number of a syntax error.
    """
    text = _read_text(path)
    try:
        _check_structure(text)
        return _parser().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{path.name}: {line}{printable(_problem(error))}") from None
    except Exception as error:  # the conversion of a value like 2024-13-45 or !!bool x can raise anything
        raise UserError(f"{path.name}: not valid YAML ({printable(' '.join(str(error).split()))})") from None


def _read_text(path: Path) -> str:
    name = path.name
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{name}: not a regular file; move it away and run `git checkout {name}`")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{name}: has {status.st_size:,} bytes; at most {MAX_BYTES:,} are allowed")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `git checkout {name}` to restore it") from None
    except UnicodeDecodeError:
        raise UserError(f"{name}: not a text file (expected YAML in UTF-8)") from None


def _parser() -> YAML:
    return YAML(typ="safe", pure=True)


def _check_structure(text: str) -> None:
    """Refuse anchors, since a few lines of nested aliases expand to a value that fills the memory, and deep nesting.

    Raises:
        MarkedYAMLError: there is one, or a syntax error.
    """
    depth = 0
    for event in _parser().parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise MarkedYAMLError(problem="nested too deeply", problem_mark=event.start_mark)
        if isinstance(event, NodeEvent) and event.anchor is not None:
            problem = f"anchors and aliases ({event.anchor}) are not supported; write the value itself"
            raise MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def _problem(error: MarkedYAMLError) -> str:
    problem = str(error.problem or error.context)
    if isinstance(error, DuplicateKeyError):  # the rest of the message shows both values, which may be long
        return problem.partition(" with value ")[0]
    return f"{error.context}, {problem}" if problem.startswith("but ") else problem
