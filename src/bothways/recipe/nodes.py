"""YAML -> typed values. Everything that is wrong is a `ConfigError` that names the file, the line and the key."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from bothways.errors import ConfigError, did_you_mean

Settings = TypeVar("Settings")
Keys = Mapping[str, tuple[yaml.Node, yaml.Node]]
"""Key -> its node, and the value's."""
_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", Path: "a path"}


class _WrongError(Exception):
    """A value does not fit; whoever catches it knows the key."""


class Document:
    """One YAML file, held as nodes, which know their lines."""

    def __init__(self, path: Path, *, files_exist: bool = True) -> None:
        """Raises ConfigError for a file that is missing, empty or not YAML. `files_exist`: those it names must."""
        self.path, self.files_exist = path, files_exist
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as problem:
            raise ConfigError(f"{path}: cannot be read ({problem}). Give a YAML file.") from None
        except yaml.MarkedYAMLError as problem:
            line = problem.problem_mark.line + 1 if problem.problem_mark else 1
            raise ConfigError(f"{path.name} line {line}: not YAML: {problem.problem}.") from None
        if root is None:
            raise ConfigError(f"{path}: the file is empty. `base` and `stages` are needed.")
        self.root: yaml.Node = root

    def fail(self, node: yaml.Node, message: str) -> NoReturn:
        """Raises ConfigError with file and line in front."""
        raise ConfigError(f"{self.path.name} line {node.start_mark.line + 1}: {message}")

    def mapping(self, node: yaml.Node, where: str, known: Collection[str]) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Key -> (its node, the value's node). Raises ConfigError for an unknown key or one that stands twice."""
        if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, f"{where} is {show(node)}, expected keys with values ({', '.join(known)}).")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else show(key)
            if name not in known:
                self.fail(key, f'unknown key "{name}" in {where}. {did_you_mean(name, known)}')
            if name in found:
                self.fail(key, f'"{name}" stands twice in {where}. Keep one.')
            found[name] = (key, value)
        return found

    def sequence(self, node: yaml.Node, where: str, of: str) -> list[yaml.Node]:
        """The entries of a list. Raises ConfigError for anything else."""
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, f"{where} is {show(node)}, expected a list of {of}.")
        return list(node.value)

    def value(self, node: yaml.Node, hint: Any, key: str, where: str) -> Any:
        """The node as a value of the type `hint`. Raises ConfigError."""
        try:
            return _parse(node, hint)
        except _WrongError:
            self.fail(node, f'"{key}" in {where} is {show(node)}, expected {spell(hint)}.')

    def settings(self, keys: Keys, kind: type[Settings], where: str) -> Settings:
        """`kind` made of the keys that are its fields. Raises ConfigError for a wrong type or value, at its line."""
        hints = get_type_hints(kind)
        values: dict[str, Any] = {}
        alone: dict[str, yaml.Node] = {}
        for key, (key_node, node) in keys.items():
            if key not in hints:
                continue
            values[key] = self.value(node, hints[key], key, where)
            try:
                # Alone too: what is wrong is then wrong on this line, unless another key makes it right.
                kind(**{key: values[key]})
            except ConfigError as problem:
                alone[str(problem)] = key_node
        try:
            return kind(**values)
        except ConfigError as problem:
            last = [key_node for key, (key_node, _) in keys.items() if key in hints][-1]
            self.fail(alone.get(str(problem), next(iter(alone.values()), last)), str(problem))


def read_value(text: str, hint: Any) -> Any:
    """`text`, as it would stand in a recipe, as a value of the type `hint`. Raises ConfigError: what was expected."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            raise _WrongError
        return _parse(node, hint)
    except (_WrongError, yaml.YAMLError):
        raise ConfigError(f"expected {spell(hint)}.") from None


def show(node: yaml.Node) -> str:
    """A value as the reader of an error knows it from the file."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:null":
            return "empty"
        return f'"{node.value}"' if node.tag == "tag:yaml.org,2002:str" else str(node.value)
    return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"


def spell(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return "one of " + ", ".join(f'"{item}"' for item in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(spell(item) for item in arguments)
    if origin is tuple:
        return f"{spell(arguments[0])} or a list of them"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "texts by name"
    return _NAMES[hint]


def _parse(node: yaml.Node, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(node, arguments)
    if origin is tuple:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(_parse(item, arguments[0]) for item in nodes)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(node, yaml.MappingNode):
            raise _WrongError
        return {_parse(key, arguments[0]): _parse(value, arguments[1]) for key, value in node.value}
    if not isinstance(node, yaml.ScalarNode):
        raise _WrongError
    if origin is Literal:
        if node.value not in arguments:
            raise _WrongError
        return node.value
    return _scalar(node, hint)


def _first_that_fits(node: yaml.Node, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _parse(node, hint)
        except _WrongError:
            continue
    raise _WrongError


def _scalar(node: yaml.ScalarNode, hint: Any) -> Any:
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if hint is type(None) and kind == "null":
        return None
    if hint is bool and kind == "bool":
        return node.value.lower() in ("true", "yes", "on")
    if hint in (str, Path) and kind == "str":
        return hint(node.value)
    # YAML 1.1 takes 5e-5 for a text, so that numbers are read as Python reads them. Quoted, they stay texts.
    if hint in (int, float) and node.style is None and kind in ("int", "float", "str"):
        try:
            return hint(node.value)
        except ValueError:
            raise _WrongError from None
    raise _WrongError
