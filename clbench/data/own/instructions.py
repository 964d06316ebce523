"""Files of prompts with responses, of conversations and of plain texts, as items (no torch).

JSON lines (`.jsonl`) or a JSON array (`.json`) of objects `{"prompt", "response"}` or `{"messages": [...]}`; other
fields are ignored. In a `.txt` file each paragraph is an item. Errors name file, line and reason.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from clbench.core.errors import DataError, SpecError
from clbench.core.files import expand_home

PROBES = {"english": Path(__file__).parents[1] / "probe" / "english.txt"}  # texts that come with clbench
ROLES = ("system", "user", "assistant", "tool")
ASSISTANT = "assistant"
HASH_DIGITS = 16  # length of the hash of a file in a record
FORMS = '{"prompt": ..., "response": ...} or {"messages": [...]}'


@dataclass(frozen=True)
class Prompted:
    """A prompt and the response to it. Only the response is scored."""

    place: str  # file and line, for errors
    prompt: str
    response: str
    task: str = ""  # if a field names it


@dataclass(frozen=True)
class Conversation:
    """Messages, for the chat template of a model. Only the turns of the assistant are scored."""

    place: str
    messages: tuple[tuple[str, str], ...]  # role and content
    task: str = ""


@dataclass(frozen=True)
class PlainText:
    """A text that is scored as a whole."""

    place: str
    text: str


Item = Prompted | Conversation | PlainText


@dataclass(frozen=True)
class FileContent:
    """The items of a file, and the SHA-256 of its bytes."""

    items: tuple[Item, ...]
    sha256: str


def read_items(path: Path, task_field: str | None = None) -> list[Item]:
    """Return the items of a file, as `read_content` reads them."""
    return list(read_content(path, task_field).items)


def read_content(path: Path, task_field: str | None = None) -> FileContent:
    """Read a file of items; in JSON, a field may name each item's task.

    Raises:
        DataError: the file cannot be read or has no items, a line has another form, or a text is not valid Unicode.
    """
    readers = {".jsonl": _from_lines, ".json": _from_array, ".txt": _from_paragraphs}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: expected a file that ends in .jsonl, .json or .txt")
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: it is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise DataError(f"{path}: it cannot be read: {error.strerror or error}") from error
    items = [_require_unicode(item) for item in reader(path, text, task_field)]
    if not items:
        raise DataError(f"{path}: it has no items; expected {FORMS} on each line, or paragraphs in a .txt file")
    return FileContent(tuple(items), hashlib.sha256(content).hexdigest())


def find_file(name: str | Path) -> Path:
    """Return the path of a file, or of clbench's own text of this name if the file does not exist."""
    path = expand_home(name)
    return path if path.is_file() else PROBES.get(str(path), path)


def read_general(names: Iterable[str]) -> dict[str, FileContent]:
    """Read the files of general texts (`--general`), each once, and return them by their names without folders.

    Raises:
        SpecError: two files have the same name.
        DataError: a file cannot be read.
    """
    contents: dict[str, FileContent] = {}
    for name in names:
        short = Path(name).name
        if short in contents:
            raise SpecError(f"--general {name}: another file is named {short}, too; rename one of them")
        contents[short] = read_content(find_file(name))
    return contents


def hashes_of(general: Mapping[str, FileContent]) -> dict[str, str]:
    """Return the hash of each file of general texts, as records store it."""
    return {name: content.sha256[:HASH_DIGITS] for name, content in general.items()}


def make_items(name: str, rows: Iterable[Any]) -> list[Item]:
    """Return rows as items: objects as in a file, or texts.

    Args:
        name: the name of the rows, for errors.
        rows: dictionaries `{"prompt", "response"}` or `{"messages": [...]}`, and strings.

    Raises:
        DataError: there are no rows, a row has another form, or a text is not valid Unicode.
    """
    items = [_require_unicode(PlainText(place, row) if isinstance(row, str) else _item(place, row, None))
             for place, row in ((f"{name}, item {number}", row) for number, row in enumerate(rows, start=1))]
    if not items:
        raise DataError(f"{name}: it has no items; expected {FORMS}, or texts")
    return items


def _require_unicode(item: Item) -> Item:
    """Return an item, and check that tokenizers can read its texts. JSON can contain one half of a character."""
    try:
        json.dumps(astuple(item)[1:], ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise DataError(f"{item.place}: its text is not valid Unicode, because {half!a} is one half of a "
                        "character; write both halves, or remove it") from None
    return item


def _from_lines(path: Path, text: str, task_field: str | None) -> Iterator[Item]:
    """Yield the items of JSON lines."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: it is not valid JSON ({_reason(error)})") from None
            yield _item(place, value, task_field)


def _from_array(path: Path, text: str, task_field: str | None) -> Iterator[Item]:
    """Yield the items of a JSON array. Their lines are found by decoding one element after the other."""
    decoder, position = json.JSONDecoder(), _skip(text, 0)
    try:
        elements = json.loads(text)
    except (ValueError, RecursionError) as error:
        line_text = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}{line_text}: it is not valid JSON ({_reason(error)})") from None
    if not isinstance(elements, list):
        raise DataError(f"{path}: expected a JSON array of {FORMS}")
    line, counted = 1, 0
    for _ in elements:
        position = _skip(text, position + 1)  # after the bracket or a comma
        line += text.count("\n", counted, position)
        counted = position
        value, end = decoder.raw_decode(text, position)
        yield _item(f"{path}, line {line}", value, task_field)
        position = _skip(text, end)


def _skip(text: str, position: int) -> int:
    """Return the position of the next character that is not white space."""
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _from_paragraphs(path: Path, text: str, task_field: str | None) -> Iterator[Item]:
    """Yield the paragraphs of a text, which blank lines separate.

    Raises:
        DataError: a field should name the tasks, but texts have no fields.
    """
    if task_field is not None:
        raise DataError(f"{path}: texts have no field {task_field!r}; expected a file that ends in .jsonl or .json")
    lines: list[str] = []
    start = 1
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            if not lines:
                start = number
            lines.append(line)
        elif lines:
            yield PlainText(f"{path}, line {start}", "\n".join(lines).strip())
            lines = []


def _item(place: str, value: Any, task_field: str | None) -> Item:
    """Return a JSON value as an item."""
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object {FORMS}, found {_format_value(value)}")
    task = ""
    if task_field is not None:
        named = value.get(task_field)
        if not isinstance(named, str | int) or not str(named).strip():
            raise DataError(f"{place}: expected the name of a task in the field {task_field!r} (task_column), found "
                            f"{_format_value(named)}")
        task = str(named)
    if "messages" in value:
        if value.get("tools"):
            raise DataError(f"{place}: descriptions of tools are not supported; write them into the system message and "
                            "remove the field 'tools'")
        return Conversation(place, tuple(_messages(place, value["messages"])), task)
    for field in ("prompt", "response"):
        if field not in value:
            raise DataError(f"{place}: the field {field!r} is missing; expected {FORMS}, found the fields "
                            f"{', '.join(map(repr, value)) or 'of an empty object'}")
        if not isinstance(value[field], str):
            raise DataError(f"{place}: {field!r} must be text, found {_format_value(value[field])}")
    if not value["response"].strip():
        raise DataError(f"{place}: the response is empty")
    return Prompted(place, value["prompt"], value["response"], task)


def _messages(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield role and content of each message."""
    if not isinstance(value, list) or not value:
        raise DataError(f"{place}: 'messages' must be a list of messages, found {_format_value(value)}")
    for number, message in enumerate(value, start=1):
        if isinstance(message, dict) and message.get("tool_calls"):
            raise DataError(f"{place}: message {number} has tool calls, which are not supported; write each call into "
                            "the message's 'content', as the text that the model should generate")
        if not isinstance(message, dict) or not isinstance(message.get("role"), str) \
                or not isinstance(message.get("content"), str):
            raise DataError(f"{place}: message {number} must have a 'role' and a 'content' that are text, found "
                            f"{_format_value(message)}")
        if message["role"] not in ROLES:
            raise DataError(f"{place}: message {number} has the role {message['role']!r}; roles are {', '.join(ROLES)}")
        if message["role"] == ASSISTANT and not message["content"].strip():
            raise DataError(f"{place}: message {number}, of the assistant, is empty")
        yield message["role"], message["content"]
    if not any(message["role"] == ASSISTANT for message in value):
        raise DataError(f"{place}: no message has the role 'assistant', so there is nothing to score")


def _format_value(value: Any) -> str:
    """Return a JSON value as an error shows it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(error: Exception) -> str:
    """Return why JSON cannot be decoded, without the position in the file."""
    return f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
