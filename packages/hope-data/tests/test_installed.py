import ast
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from hope_data import documents, installed
from hope_data.cli import main
from hope_data.config import Installed
from hope_data.errors import InputError

CONF = Path(__file__).parents[3] / "conf" / "corpus"


def test_docs_of_this_very_package() -> None:
    pages = {d.id: d for d in installed.documents(Installed(packages=["hope_data"]))}
    page = pages["hope_data.loader.Loader"]
    assert page.text.startswith("class hope_data.loader.Loader(Iterator[Batch])\n\nEndless batches;")
    assert "hope_data.loader.Loader.state_dict(self)" in page.text
    assert page.meta["package"] == "hope-data"
    assert page.meta["licence"] == "Apache-2.0"
    assert page.meta["module"] == "hope_data.loader"


def test_long_methods_have_pages_of_their_own() -> None:
    source = (
        f'class A:\n "About A."\n def short(self):\n  "Short."\n def long(self, x=1):\n  "{"Long. " * 80}"\n'
    )
    pages = dict(installed._pages(ast.parse(source), "m", attached=False))
    assert list(pages) == ["m.A.long", "m.A"]
    assert pages["m.A"] == "class m.A()\n\nAbout A.\n\n\nm.A.short(self)\n\nShort.\n"
    assert pages["m.A.long"].startswith("m.A.long(self, x=1)\n\nLong. Long.")


def test_attached_docstrings(tmp_path: Path) -> None:
    source = (
        'add_newdoc("pkg.core", "dot", ("dot", """\n    Product of two.\n' + "    x\n" * 40 + '"""))\n'
        'add_docstr(torch.abs, r"""abs(input)\n' + "y\n" * 40 + '""")\n'
        'add_docstr_all("add_", "short")\n'
    )
    pages = dict(installed._pages(ast.parse(source), "m", attached=True))
    assert list(pages) == ["m:pkg.core.dot", "m:torch.abs"]
    assert pages["m:torch.abs"].startswith("torch.abs\n\nabs(input)\ny\n")
    assert "Product of two." in pages["m:pkg.core.dot"]


def test_code_has_no_docstring_left_and_still_parses() -> None:
    seen = Counter[str]()
    for document in islice(installed.documents(Installed(packages=["stdlib"], what="code")), 60):
        tree = ast.parse(document.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                seen["nodes"] += 1
                assert ast.get_docstring(node) is None, document.id
    assert seen["nodes"] > 300


def test_one_package_part_one_file_and_topics() -> None:
    part = [d.id for d in installed.documents(Installed(packages=["numpy.linalg"]))]
    assert part
    assert all(i.startswith("numpy.linalg") for i in part)
    assert [d.meta["module"] for d in installed.documents(Installed(packages=["hope_data.bpb"]))] == [
        "hope_data.bpb"
    ] * 2
    topics = list(installed.documents(Installed(packages=["topics"])))
    assert len(topics) > 50
    assert topics[0].meta["licence"] == "PSF-2.0"


@pytest.mark.parametrize("name", ["nosuchpackage", "numpy.nosuchpart"])
def test_missing_package_is_named(name: str) -> None:
    with pytest.raises(InputError, match=name.split(".", maxsplit=1)[0]):
        list(installed.documents(Installed(packages=[name])))


def test_same_environment_same_bytes_and_no_path_of_this_machine(tmp_path: Path) -> None:
    manifest = tmp_path / "n.yaml"
    manifest.write_text(
        "kind: installed-docs\ninstalled: {packages: [topics, numpy]}\nlimits: {bytes: 600_000}\n"
    )
    for out in ("one", "two"):
        assert main(["acquire", "--manifest", str(manifest), "--out", str(tmp_path / out)]) == 0
    files = sorted(p.name for p in (tmp_path / "one").iterdir())
    for name in files:
        data = (tmp_path / "one" / name).read_bytes()
        assert data == (tmp_path / "two" / name).read_bytes()
    record = documents.provenance(tmp_path / "one")
    assert 600_000 <= record["bytes"] < 700_000
    assert set(record["packages"]) == {"python", "numpy"}
    home = str(Path(installed.__file__).parents[1])
    assert home not in (tmp_path / "one" / "provenance.json").read_text()
    for document in documents.read(tmp_path / "one"):
        assert {"package", "version", "module", "licence", "sha256"} <= set(document.meta)
