"""Configs: TOML files and `--set key=value`, checked by pydantic, refused by name with the nearest spelling."""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from copy import deepcopy
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from regard.errors import BITS, ConfigError, nearest, not_utf8, shown

T = TypeVar("T", bound=BaseModel)
LARGEST, DEEPEST = 2**22, 100  # bytes of a config, and tables within each other
MOST = 2**53  # of a whole number that has no upper bound of its own
CONFIG_FOLDER = Path(__file__).parent / "configs"  # the shipped ones

# settings and sections of format 1 with their current names, in the order in which they are replaced: a setting of a
# renamed section stands here under the section's current name
RENAMED = {
    "asked": "questions",
    "model.reads": "model.source_encoder",
    "model.aligned": "model.ctc_head",
    "model.inner": "model.ffn_width",
    "model.inner_biases": "model.ffn_biases",
    "model.first_place": "model.first_position",
    "scenes.alone": "scenes.single_epochs",
    "questions.scenes.alone": "questions.scenes.single_epochs",
    "training.forget": "training.word_dropout",
    "training.cover": "training.coverage_loss",
    "training.guide": "training.guided_alignment",
    "training.join": "training.concat_pairs",
}
BARE = re.compile(r"[A-Za-z0-9_-]+")  # a key without quotes
LONG = 60  # characters of a kind that is repeated in a sentence
SIMILAR = 0.8  # of two spellings, for a suggestion from another section


def config_names() -> list[str]:
    """The names of the shipped configs."""
    return sorted(path.stem for path in CONFIG_FOLDER.glob("*.toml"))


def find_config(config: str | Path) -> Path:
    """The TOML file of a config: a file, or else the shipped one of that name.

    Raises:
        ConfigError: there is neither; the nearest names are listed.
    """
    path = Path(config)
    of_shipped = str(config) in config_names()
    try:
        there = path.exists() or path.is_symlink()
    except OSError as error:  # too long, or in a folder that may not be read
        raise ConfigError(f"{config}: no config can be looked for there: {error.strerror or error}") from error
    if there and not (of_shipped and path.is_dir()):  # a run may have its config's name
        return path
    if of_shipped:
        return CONFIG_FOLDER / f"{config}.toml"
    if path.suffix == ".toml" or path.parent != Path():
        raise ConfigError(f"{config}: no such config file")
    near = ", ".join(map(repr, nearest(str(config), config_names())[:4]))
    raise ConfigError(
        f"{config}: no such config file, and no shipped config of that name; `regard configs` lists {near}, …"
    )


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file; a byte order mark is dropped.

    Raises:
        ConfigError: the file is missing, is not a regular file, or is not TOML.
    """
    try:
        if path.exists() and not path.is_file():  # reading a pipe would wait, a device might never end
            what = "a folder" if path.is_dir() else "a pipe or a device"
            of_run = f"; a run's is {path / 'config.toml'}" if (path / "config.toml").is_file() else ""
            raise ConfigError(f"{path}: {what}, not a config file{of_run}")
        if path.exists() and (size := path.stat().st_size) > LARGEST:
            raise ConfigError(f"{path}: a config has at most {LARGEST:,} bytes; this file has {size:,}")
        found = tomllib.loads(path.read_text("utf-8-sig"))
        if _depth(found) > DEEPEST:
            raise ConfigError(f"{path}: not a config: nested too deeply")
        return found
    except ConfigError:  # a ValueError, too
        raise
    except RecursionError as error:
        raise ConfigError(f"{path}: not a TOML file: nested too deeply") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: a folder, not a config file") from error
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a TOML file: {not_utf8(error)}") from error
    except ValueError as error:  # TOMLDecodeError, or Python's for a number of thousands of digits
        raise ConfigError(f"{path}: not a TOML file: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def _depth(settings: dict[str, Any]) -> int:
    """How many tables, at most, stand within each other."""
    depth, within = 0, [settings]
    while within:
        depth += 1
        within = [part for one in within for part in one.values() if isinstance(part, dict)]
    return depth


def parse_setting(setting: str) -> tuple[str, Any]:
    """`model.width=192` as ("model.width", 192); a value that is not TOML is a string.

    Raises:
        ConfigError: there is no "=".
    """
    key, equals, value = setting.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {setting}: expected key=value, for example --set model.width=192")
    if key.count(".") > DEEPEST:
        raise ConfigError(f"--set {key[:40]}…: no setting has so many parts")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except ValueError:  # TOMLDecodeError, or Python's for a number of thousands of digits
        return key.strip(), value
    except RecursionError as error:
        raise ConfigError(f"--set {key.strip()}: its lists are nested too deeply") from error


def with_current_names(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings with every name of format 1 replaced by its current one, and the replacements made, old to new.

    Raises:
        ConfigError: a setting stands there under both its names.
    """
    result, replaced = deepcopy(settings), {}
    for old, new in RENAMED.items():
        *path, before = old.split(".")
        after = new.split(".")[-1]
        section: Any = result
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and before in section:
            if after in section:
                raise ConfigError(f"{old} and {new} are two names of one setting: leave out {old}, the old one")
            renamed = {after if name == before else name: value for name, value in section.items()}
            section.clear()
            section.update(renamed)
            replaced[old] = new
    return result, replaced


def current_name(dotted: str) -> str:
    """A dotted setting under its current name: "model.inner" is "model.ffn_width"."""
    for old, new in RENAMED.items():
        if dotted == old or dotted.startswith(f"{old}."):
            dotted = new + dotted[len(old) :]
    return dotted


def apply(settings: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Settings with dotted keys replaced."""
    result = deepcopy(settings)
    for dotted, value in overrides.items():
        *path, last = dotted.split(".")
        place = result
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{dotted}: {part} is a single setting and has no parts")
        place[last] = value
    return result


def validate(kind: type[T], settings: dict[str, Any], where: str) -> T:
    """A config object, or one `ConfigError` that lists every fault."""
    try:
        found = kind.model_validate(settings)
    except ValidationError as error:
        faults = _meant([_Fault(settings, one) for one in error.errors()])
        raise ConfigError(f"{where}: " + "; ".join(_sentence(kind, settings, one) for one in faults)) from error
    if large := [f"{name}: expected at most {MOST:,}; got {shown(value)}" for name, value in _too_large(found)]:
        raise ConfigError(f"{where}: " + "; ".join(large))
    return found


def _too_large(found: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers that have no upper bound of their own and are above `MOST`, each with its dotted name."""
    if isinstance(found, BaseModel):
        for part, field in type(found).model_fields.items():
            if not any(hasattr(bound, "lt") or hasattr(bound, "le") for bound in field.metadata):
                yield from _too_large(getattr(found, part), f"{name}.{part}" if name else part)
    elif isinstance(found, list | tuple | dict):
        for one in found.values() if isinstance(found, dict) else found:
            yield from _too_large(one, name)
    elif isinstance(found, int) and found > MOST:
        yield name, found


class _Fault:
    """What pydantic says of a place in the settings.

    Attributes:
        place: the keys and numbers that lead there.
        given: what stands there.
        tried: for each type of a union on the way, the place, what stands there, and the type's name.
        what: pydantic's own words.
        kinds: the types that a setting may have, where it has none of them.
    """

    def __init__(self, settings: Any, what: Any) -> None:
        self.place: tuple[str | int, ...] = ()
        self.tried: list[tuple[tuple[str | int, ...], Any, str]] = []
        self.what, self.given = what, settings
        self.kinds: list[str] = []
        for number, part in enumerate(what["loc"], 1):
            known = isinstance(self.given, dict) and part in self.given
            if known or (isinstance(self.given, list | tuple) and isinstance(part, int) and part < len(self.given)):
                self.given = self.given[part]
            elif part == "[key]":  # the name itself is what is wrong
                continue
            elif number < len(what["loc"]) or what["type"] != "missing":
                self.tried.append((self.place, self.given, str(part)))
                continue
            self.place += (part,)


def _meant(faults: Sequence[_Fault], depth: int = 0) -> list[_Fault]:
    """The faults that say what is wrong: pydantic tries each type of a union, and says of each why it is none.

    Where the setting is a list of tables, the faults of a table are meant; else one says which types there are.
    """
    found: list[_Fault] = []
    unions: dict[tuple[str | int, ...], list[_Fault]] = {}
    for one in faults:
        if len(one.tried) > depth:
            unions.setdefault(one.tried[depth][0], []).append(one)
        else:
            found.append(one)
    for place, those in unions.items():
        kinds = list(dict.fromkeys(one.tried[depth][2] for one in those))
        within = [one for one in those if len(one.place) > len(place) + 1 or len(kinds) == 1]
        found += _meant(within, depth + 1)
        if not within:
            _, those[0].given, _ = those[0].tried[depth]
            those[0].place, those[0].kinds = place, kinds
            found.append(those[0])
    return found


WORDS = {"str": "a string", "int": "a whole number", "float": "a number", "bool": "true or false"}
MANY = {"str": "strings", "int": "whole numbers", "float": "numbers"}


def _in_words(kind: str) -> str:
    """A type as people write it in TOML: "tuple[str, ...]" is "a list of strings"."""
    inside = re.fullmatch(r"(?:tuple|list|constrained-tuple)\[(.*)\]", kind)
    if inside is None:
        return WORDS.get(kind, "a table")
    first, *rest = inside[1].split(", ")
    length = "" if not rest or rest == ["..."] else f"{1 + len(rest)} "
    return f"a list of {length}{MANY.get(first, 'tables')}"


def _sentence(kind: type[BaseModel], settings: dict[str, Any], found: _Fault) -> str:
    path, fields = _walk(kind, settings, [str(part) for part in found.place])
    fault = found.what
    if found.kinds:
        *others, last = map(_in_words, found.kinds)
        return f"{'.'.join(path)}: expected {', '.join(others)} or {last}; got {shown(found.given)}"
    if fault["type"] == "extra_forbidden":
        known = nearest(path[-1], fields)
        meant = _elsewhere(kind, settings, path[-1], known) or known[0]
        return f"unknown setting {'.'.join(path)}: did you mean {meant}? (known: {', '.join(known)})"
    dotted = ".".join(path) or "config"
    choice = ": expected one of " + ", ".join(kinds) if (kinds := _kinds(kind, path)) else ""
    if fault["type"] == "missing":
        return (
            f"the section [{dotted}] is missing, whose kind says what it is{choice}"
            if kinds
            else f"{dotted} is missing"
        )
    if fault["type"] == "union_tag_not_found" and isinstance(fault["input"], dict):
        return f"{dotted}.kind is missing{choice}"
    said = f"{dotted}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
    if len(tag := str(fault.get("ctx", {}).get("tag", ""))) > LONG:
        said = said.replace(tag, f"{tag[:LONG]}…")
    if isinstance(fault["input"], dict) and fault["type"] == "value_error":  # of settings in it, which it names
        return said
    return f"{said}; got {shown(fault['input'])}"


def _kinds(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The kinds that a section of a config may have; none where it is no section of several kinds."""
    if len(path) != 1 or path[0] not in kind.model_fields:
        return []
    members = [one for one in _members(kind.model_fields[path[0]].annotation) if isinstance(one, type)]
    tags = [one.model_fields["kind"] for one in members if issubclass(one, BaseModel) and "kind" in one.model_fields]
    return [repr(word) for tag in tags for word in get_args(tag.annotation)]


def _elsewhere(kind: type[BaseModel], settings: dict[str, Any], name: str, known: list[str]) -> str | None:
    """The dotted name of a setting in any section whose spelling is nearer to `name` than that of every known one."""

    def likeness(word: str) -> float:
        return SequenceMatcher(None, name, word).ratio()

    best = max(map(likeness, known), default=0.0)
    found = [(likeness(dotted.split(".")[-1]), dotted) for dotted in _dotted(kind, settings)]
    found = [(ratio, dotted) for ratio, dotted in found if ratio >= SIMILAR and ratio > best]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _dotted(kind: type[BaseModel], settings: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of all settings in the sections of a config, those sections first that `settings` has."""
    given = settings if isinstance(settings, dict) else {}
    for name in sorted(kind.model_fields, key=lambda name: name not in given):
        if prefix:
            yield prefix + name
        for member in _members(kind.model_fields[name].annotation):
            inside = given.get(name, {})
            if isinstance(member, type) and issubclass(member, BaseModel) and _is_of_kind(member, inside):
                yield from _dotted(member, inside, f"{prefix}{name}.")


def _walk(kind: type[BaseModel], settings: Any, loc: list[str]) -> tuple[list[str], list[str]]:
    """An error's path without the names of union members, and the settings known there."""
    path, fields = [], list(kind.model_fields)
    for part in loc:
        if isinstance(settings, dict) and part == settings.get("kind"):
            continue
        path.append(part)
        settings = settings.get(part, {}) if isinstance(settings, dict) else {}
        annotation = kind.model_fields[part].annotation if part in kind.model_fields else None
        for member in _members(annotation):
            if isinstance(member, type) and issubclass(member, BaseModel) and _is_of_kind(member, settings):
                kind, fields = member, list(member.model_fields)
    return path, fields


def _members(annotation: Any) -> list[Any]:
    """A type and, if it is a union or annotated, the types within it."""
    return [annotation, *(inner for part in get_args(annotation) for inner in _members(part))]


def _is_of_kind(member: type[BaseModel], settings: Any) -> bool:
    tag = member.model_fields.get("kind")
    return tag is None or (isinstance(settings, dict) and settings.get("kind", tag.default) in get_args(tag.annotation))


def to_toml(config: BaseModel) -> str:
    """A config as TOML with a comment on every setting; reading it gives the same config."""
    return "\n".join(_section(config, "")).strip() + "\n"


def _section(config: BaseModel, name: str) -> list[str]:
    """A config's own settings, then its sections under their names."""
    parts = [key for key, value in config if isinstance(value, BaseModel)]
    lines = [_line(config, key) for key in type(config).model_fields if key not in parts]
    for key in parts:
        full = f"{name}.{key}" if name else key
        lines += ["", f"[{full}]", *_section(getattr(config, key), full)]
    return lines


def _line(config: BaseModel, name: str) -> str:
    field = type(config).model_fields[name]
    value, meaning = getattr(config, name), " ".join((field.description or "").split())
    choices = [_literal(one) for one in _members(field.annotation) if isinstance(one, str)]
    if len(choices) > 1 and not all(one in meaning for one in choices):
        meaning = f"{meaning} One of {', '.join(choices)}.".strip()
    shown = f"# {name} = (not set)" if value is None else f"{name} = {_literal(value)}"
    return f"{shown:<40} # {meaning}" if meaning else shown


def _literal(value: object) -> str:
    if isinstance(value, BaseModel):  # one of a list of tables
        value = value.model_dump(exclude_none=True)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        named = ((name if BARE.fullmatch(name) else _literal(name), part) for name, part in value.items())
        return "{ " + ", ".join(f"{name} = {_literal(part)}" for name, part in named) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return hex(value) if isinstance(value, int) and value.bit_length() > BITS else repr(value)
