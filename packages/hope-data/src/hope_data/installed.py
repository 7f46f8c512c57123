"""Text that comes with the Python environment: docstrings, help topics, source; parsed, never imported."""

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from hope_data.config import Installed
from hope_data.documents import Document
from hope_data.errors import InputError

_Def = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# Characters from which a method's documentation is a document of its own.
_OWN_PAGE = 400
# Functions by which compiled packages attach docstrings.
_DOC_CALLS = ("add_docstr", "_add_docstr", "add_docstr_all", "add_newdoc", "add_newdoc_for_scalar_type")


def documents(installed: Installed, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """Yield the documents of every package in turn, its files in an order that a byte limit may cut anywhere.

    Args:
        installed: what to read.
        skipped: counts the files that are left out, by reason.

    Raises:
        InputError: a package is not installed, or has no Python source.
    """
    skipped = Counter() if skipped is None else skipped
    for package in installed.packages:
        if package == "topics":
            yield from _topics()
            continue
        base, root, about = _locate(package)
        for path in _files(root, installed.skip):
            relative = path.relative_to(base).with_suffix("").as_posix()
            module = relative.removesuffix("/__init__").replace("/", ".")
            yield from _from_file(path, module, installed, about, skipped)


def _locate(package: str) -> tuple[Path, Path, dict[str, Any]]:
    """Folder that module names count from, folder or file to read, and provenance of a package."""
    if package == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        return root, root, _python()
    top, _, inner = package.partition(".")
    if not all(part.isidentifier() for part in package.split(".")):
        raise InputError(f"manifest: package {package!r} is no name of a module; take it off `packages`")
    # On the path first: what is frozen into the interpreter has its source there.
    spec = PathFinder.find_spec(top) or (None if top in sys.modules else importlib.util.find_spec(top))
    if top in sys.builtin_module_names:
        raise InputError(
            f"manifest: package {top} is built into Python and has no source; take it off `packages`"
        )
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        raise InputError(
            f"manifest: package {top} is not installed; `pip install {top}` or take it off `packages`"
        )
    folders = list(spec.submodule_search_locations or ())
    home = Path(folders[0]) if folders else Path(spec.origin or "")
    root = home.joinpath(*inner.split(".")) if inner else home
    if not root.exists():
        root = root.with_suffix(".py")
    if not root.exists():
        raise InputError(f"manifest: {package} does not exist in the installed {top}; take it off `packages`")
    if root.is_file() and root.suffix != ".py":
        raise InputError(f"manifest: package {package} is compiled and has no source; take it off `packages`")
    return home.parent, root, _about(top)


def _python() -> dict[str, Any]:
    return {"package": "python", "version": ".".join(map(str, sys.version_info[:3])), "licence": "PSF-2.0"}


def _about(top: str) -> dict[str, Any]:
    """Name, version and licence of the distribution that provides a module."""
    if top in sys.stdlib_module_names:
        return _python()
    try:
        distribution = metadata.distribution(top)
    except metadata.PackageNotFoundError:
        if not (names := metadata.packages_distributions().get(top)):
            return {"package": top, "version": "unknown", "licence": "unknown"}
        distribution = metadata.distribution(names[0])
    about = distribution.metadata
    stated = [text for key in ("License-Expression", "License") for text in about.get_all(key, [])]
    classifiers = [c for c in about.get_all("Classifier", []) if c.startswith("License ::")]
    stated += [c.rsplit(" :: ", 1)[1] for c in classifiers]
    # Some packages put the whole licence text into the field.
    licence = next((text for text in stated if "\n" not in text and text != "UNKNOWN"), "see package")
    return {"package": about["Name"], "version": distribution.version, "licence": licence}


def _files(root: Path, skip: list[str]) -> list[Path]:
    if root.is_file():
        return [root]
    paths = []
    for folder, inner, names in os.walk(root):
        inner[:] = [name for name in inner if name not in skip]
        paths += [Path(folder, name) for name in names if name.endswith((".py", ".rst")) and name not in skip]
    # By hash, so that whatever a limit leaves is a fair sample.
    return sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def _from_file(
    path: Path, module: str, installed: Installed, about: dict[str, Any], skipped: Counter[str]
) -> Iterator[Document]:
    meta = {**about, "module": module}
    if path.suffix == ".rst" and installed.what == "code":
        return
    try:
        source = path.read_text(encoding="utf-8")
        if path.suffix == ".rst":
            pages = [(module, source)]
        elif installed.what == "code" and len(source) > installed.file_bytes:
            skipped["longer than file_bytes"] += 1
            return
        else:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(source)
            attached = any(call in source for call in _DOC_CALLS)
            code = installed.what == "code"
            pages = (
                [(module, _without_docstrings(source, tree))]
                if code
                else list(_pages(tree, module, attached))
            )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        skipped["no UTF-8"] += 1
        return
    # The parser gives up on brackets by the hundred.
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        skipped["no Python that can be parsed"] += 1
        return
    yield from (Document(text, name, meta) for name, text in pages)


def _pages(tree: ast.Module, module: str, attached: bool) -> Iterator[tuple[str, str]]:
    """Name and text of one page per module, function, class and attached docstring.

    A class page holds its methods, but those with much to say have pages of their own.
    """
    if text := ast.get_docstring(tree):
        yield module, f"{module}\n\n{text}\n"
    for node in tree.body:
        if isinstance(node, _Def):
            yield from _page(node, module)
    for call in ast.walk(tree) if attached else ():
        if isinstance(call, ast.Call) and _name(call.func) in _DOC_CALLS and (page := _attached(call)):
            yield f"{module}:{page[0]}", f"{page[0]}\n\n{page[1]}\n"


def _page(node: _Def, parent: str) -> Iterator[tuple[str, str]]:
    """Name and text of a definition's page and of the pages of its long methods."""
    name = f"{parent}.{node.name}"
    text = ast.get_docstring(node)
    parts = [f"{_signature(node, parent)}\n\n{text}\n"] if text else []
    if isinstance(node, ast.ClassDef):
        for child in node.body:
            for inner, page in _page(child, name) if isinstance(child, _Def) else ():
                if len(page) < _OWN_PAGE:
                    parts.append(page)
                else:
                    yield inner, page
    if parts:
        yield name, "\n\n".join(parts)


def _signature(node: _Def, parent: str) -> str:
    if isinstance(node, ast.ClassDef):
        return f"class {parent}.{node.name}({', '.join(ast.unparse(base) for base in node.bases)})"
    return f"{parent}.{node.name}({ast.unparse(node.args)})"


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _attached(call: ast.Call) -> tuple[str, str] | None:
    """What is documented and its text, of a call such as `add_newdoc("numpy", "dot", "…")`."""
    texts = [
        n.value
        for arg in call.args
        for n in ast.walk(arg)
        if isinstance(n, ast.Constant) and type(n.value) is str
    ]
    if not texts or len(longest := max(texts, key=len)) < 80:
        return None
    names = [ast.unparse(call.args[0]).strip("'\""), *(t for t in texts[:2] if t.isidentifier())]
    return ".".join(dict.fromkeys(names)), "\n".join(
        line.rstrip() for line in longest.strip("\n").split("\n")
    )


def _without_docstrings(source: str, tree: ast.Module) -> str:
    """Source whose docstrings are gone, so that `code` and the prose corpora share no text."""
    lines: list[str | None] = list(source.split("\n"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | _Def) and ast.get_docstring(node, clean=False) is not None:
            first, last = node.body[0].lineno - 1, node.body[0].end_lineno or 0
            indent = " " * node.body[0].col_offset
            lines[first:last] = [f"{indent}..." if len(node.body) == 1 else None] + [None] * (
                last - first - 1
            )
    return "\n".join(line for line in lines if line is not None).strip("\n") + "\n"


def _topics() -> Iterator[Document]:
    from pydoc_data.topics import topics  # noqa: PLC0415  (half a megabyte)

    for name, text in sorted(topics.items()):
        yield Document(text.strip() + "\n", f"topics.{name}", {**_python(), "module": "pydoc_data.topics"})
