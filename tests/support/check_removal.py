"""Runs attacks with the checks taken out that stop them, to see that each attack's test notices.

    python -m pytest -p check_removal --removed-to FILE tests/attacks

A check is an expression of the product's source (or of a library's): what takes its place is compiled into the function
while a test runs, so whoever has imported the function is affected, and nothing else is. The table is `attack_checks`.
Of every test that it names, FILE says what became of it without its checks: `LANDED` where the test failed because it
noticed. Fixtures are made anew for each row of the table, so that a server starts without its checks too.
"""

import ast
import copy
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest
from _pytest.runner import runtestprotocol

LANDED = "the test fails"
MISSED = "the test passes"

_FUTURE_FLAGS = 0xFFFF0000  # of a code object: what its module imports from __future__


@dataclass(frozen=True, slots=True)
class Check:
    """An expression of the source.

    Attributes:
        place: Of the function, `module:Class.function`.
        text: The expression; how it is laid out does not matter.
        instead: What takes its place; a condition is never met.
        times: How often it is there.
    """

    place: str
    text: str
    instead: str = "False"
    times: int = 1

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Take the check out while the block runs."""
        function = _function(self.place)
        code, tree = function.__code__, _TREES.get(function)
        _TREES[function] = changed = self._without(tree or _parsed(function))
        function.__code__ = _compiled(changed, function)
        try:
            yield
        finally:
            function.__code__ = code
            if tree is None:
                del _TREES[function]
            else:
                _TREES[function] = tree

    def _without(self, tree: ast.Module) -> ast.Module:
        """Return a function's source without the check."""
        swap = _Swap(ast.parse(self.text, mode="eval").body, ast.parse(self.instead, mode="eval").body)
        changed: ast.Module = swap.visit(copy.deepcopy(tree))
        if swap.count != self.times:
            raise LookupError(
                f"{self.place} has `{self.text}` {swap.count} times, not {self.times}: what stops the attack now?"
            )
        return changed


_TREES: dict[FunctionType, ast.Module] = {}
"""What functions are compiled from while checks of theirs are taken out."""


def _parsed(function: FunctionType) -> ast.Module:
    return ast.parse(textwrap.dedent(inspect.getsource(function)))


def _compiled(tree: ast.Module, function: FunctionType) -> CodeType:
    flags = function.__code__.co_flags & _FUTURE_FLAGS
    whole = compile(
        ast.fix_missing_locations(tree), inspect.getfile(function), "exec", flags=flags, dont_inherit=True
    )
    codes = [one for one in whole.co_consts if isinstance(one, CodeType)]
    return next(one for one in codes if one.co_name == function.__name__)


class _Swap(ast.NodeTransformer):
    """Replaces an expression wherever it is, and counts that."""

    def __init__(self, wanted: ast.expr, instead: ast.expr) -> None:
        self.count = 0
        self._wanted, self._instead = ast.dump(wanted), instead

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and ast.dump(node) == self._wanted:
            self.count += 1
            return self._instead
        return self.generic_visit(node)


@dataclass(frozen=True, slots=True)
class Replaced:
    """A thing of a module or a class, and what stands in its place: for what is no expression of a function.

    Attributes:
        place: `module:name` or `module:Class.name`.
        make: From what is there to what stands there instead.
    """

    place: str
    make: Callable[[Any], Any]

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Have it stand there while the block runs."""
        module, _, path = self.place.partition(":")
        owner_path, _, name = path.rpartition(".")
        owner = _resolve(module, owner_path)
        original = inspect.getattr_static(owner, name)
        setattr(owner, name, self.make(original))
        try:
            yield
        finally:
            setattr(owner, name, original)


@dataclass(frozen=True, slots=True)
class Removal:
    """A row of the table: what stops some attacks.

    Attributes:
        attacks: Names of tests; with `[...]` one set of parameters, without all of them.
        checks: They stop the attack together: where there are several, each would do alone, or one backs the other.
        lands: How the test notices, if it is not by an assertion or by an error that does not come: the error that
            then comes, as a regular expression for `Kind: message`.
        why: What is to be known of it.
    """

    attacks: tuple[str, ...]
    checks: tuple[Check | Replaced, ...]
    lands: str = ""
    why: str = ""

    def holds(self, test: str) -> bool:
        """Return whether the row is of a test, as pytest names it."""
        return test in self.attacks or test.partition("[")[0] in self.attacks


def _resolve(module: str, path: str) -> Any:
    found: Any = import_module(module)
    for name in path.split(".") if path else ():
        found = getattr(found, name)
    return found


def _function(place: str) -> FunctionType:
    """Return the function itself, behind decorators and whatever binds it."""
    module, _, path = place.partition(":")
    owner_path, _, name = path.rpartition(".")
    found = inspect.getattr_static(_resolve(module, owner_path), name)
    found = getattr(found, "__func__", found)
    found = inspect.unwrap(getattr(found, "fget", found) or found)
    assert isinstance(found, FunctionType), place
    return found


# The plugin.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Say where to write what became of the tests."""
    parser.addoption("--removed-to", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    """Take the table."""
    removals = import_module("attack_checks").REMOVALS
    config.pluginmanager.register(_Runner(removals, config.getoption("--removed-to")))


class _Runner:
    """Runs the tests of the table, row by row."""

    def __init__(self, removals: Sequence[Removal], path: Path) -> None:
        self._removals, self._path = removals, path
        self._active: ExitStack | None = None
        self._outcomes: dict[str, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave the table's tests, in its order."""
        rows = {id(item): self._row(item) for item in items}
        items[:] = sorted((item for item in items if rows[id(item)] is not None), key=lambda i: rows[id(i)])

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Run a test without its checks; fixtures end with their row."""
        goes_on = nextitem is not None and self._row(nextitem) == self._row(item)
        try:
            self._remove_checks(item)
            runtestprotocol(item, nextitem=nextitem if goes_on else None)
        except (LookupError, AttributeError, ImportError) as error:
            self._outcomes[item.name] = f"the check is not there: {error}"
        if not goes_on and self._active is not None:
            self._active.close()
            self._active = None
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
        """Note how a test ended."""
        report = yield
        if call.when == "call" or call.excinfo is not None:
            row = self._row(item)
            assert row is not None
            self._outcomes[item.name] = _outcome(call, self._removals[row].lands)
        return report

    def pytest_sessionfinish(self) -> None:
        """Write what was noted."""
        self._path.write_text(json.dumps(self._outcomes, indent=1))

    def _remove_checks(self, item: pytest.Item) -> None:
        """Take the checks of the test's row out, unless the test before has."""
        row = self._row(item)
        if self._active is None and row is not None:
            with ExitStack() as stack:
                for check in self._removals[row].checks:
                    stack.enter_context(check.removed())
                self._active = stack.pop_all()

    def _row(self, item: pytest.Item) -> int | None:
        return next((k for k, removal in enumerate(self._removals) if removal.holds(item.name)), None)


def _outcome(call: pytest.CallInfo[None], lands: str) -> str:
    """Return whether a test noticed; else what went wrong, which proves nothing."""
    if call.excinfo is None:
        return MISSED
    said = f"{call.excinfo.typename}: {call.excinfo.value}"
    if call.when != "call":
        return f"{call.when}: {said}"
    if lands:
        return LANDED if re.search(lands, said, re.DOTALL) else said
    is_noticed = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
    return LANDED if is_noticed and "Regex pattern did not match" not in said else said
