"""YAML of a plan: values of settings mean what they mean in a file of settings.

    settings: {damping: 1e-3, refit: off, revision: 1e3}       # a number, and two words

The values of options stand in settings, in axes and their lists, in a search, and in scales. There
a word means what the option takes it for (`config/settings_file.py`); everything else is YAML, with
1e-3 a number.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml

from q2n.config.settings_file import meant


def read_yaml(text: bytes) -> Any:
    """What a plan holds. Raises as yaml does, and for a key that stands twice."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Reader(loader).plan(node)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, of which YAML would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _require_once(node)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(  # which YAML 1.1 takes for a text
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+"),
    list("-+0123456789"),
)


def _require_once(node: yaml.MappingNode) -> None:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice", node.start_mark
            )


class _Reader:
    """The values of nodes, by where they stand."""

    def __init__(self, loader: _Loader):
        self._loader = loader
        self._lists: set[str] = set()
        """Axes that are lists of an option's values, which `skip` names too."""

    def plan(self, node: yaml.Node) -> Any:
        """A plan, or what a scale puts in the place of its keys."""
        readers: dict[Any, Callable[[yaml.Node], Any]] = {
            "axes": lambda each: self._mapping(each, self._axis),
            "settings": self._settings,
            "skip": lambda each: self._list(each, self._skipped),
            "search": lambda each: self._mapping(each, self._of_search),
            "scales": lambda each: self._mapping(each, lambda _, scale: self.plan(scale)),
        }
        if isinstance(node, yaml.MappingNode):  # axes first, for what is skipped
            node.value.sort(key=lambda pair: pair[0].value != "axes")
        return self._mapping(node, lambda key, each: readers.get(key, self._plain)(each))

    def _settings(self, node: yaml.Node) -> Any:
        return self._mapping(node, self._setting)

    def _setting(self, name: Any, node: yaml.Node) -> Any:
        if isinstance(node, yaml.ScalarNode):
            value = meant(str(name), node.value, quoted=node.style is not None)
            whole = isinstance(value, float) and node.value.isdecimal()
            return int(node.value) if whole else value  # as a label it is called so
        text = yaml.ScalarNode
        return self._list(node, lambda x: x.value if isinstance(x, text) else self._plain(x))

    def _axis(self, axis: Any, node: yaml.Node) -> Any:
        if isinstance(node, yaml.SequenceNode):
            self._lists.add(axis)
            return self._values(axis, node)
        self._lists.discard(axis)
        return self._mapping(node, lambda _, settings: self._settings(settings))

    def _values(self, name: Any, node: yaml.Node) -> Any:
        return self._list(node, lambda value: self._setting(name, value))

    def _skipped(self, node: yaml.Node) -> Any:
        return self._mapping(node, self._labels)

    def _labels(self, axis: Any, node: yaml.Node) -> Any:
        """One label of an axis, or several."""
        if axis not in self._lists:
            return self._plain(node)
        several = isinstance(node, yaml.SequenceNode)
        return self._values(axis, node) if several else self._setting(axis, node)

    def _of_search(self, key: Any, node: yaml.Node) -> Any:
        return self._mapping(node, self._values) if key == "over" else self._plain(node)

    def _mapping(self, node: yaml.Node, read: Callable[[Any, yaml.Node], Any]) -> Any:
        """What is no mapping is read as it is, and so below: the plan refuses it."""
        if not isinstance(node, yaml.MappingNode):
            return self._plain(node)
        _require_once(node)
        self._loader.flatten_mapping(node)  # takes over those of another (<<)
        return {self._plain(key): read(self._plain(key), value) for key, value in node.value}

    def _list(self, node: yaml.Node, read: Callable[[yaml.Node], Any]) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self._plain(node)
        return [read(each) for each in node.value]

    def _plain(self, node: yaml.Node) -> Any:
        return self._loader.construct_object(node, deep=True)
