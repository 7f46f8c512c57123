import re
from pathlib import Path

import pytest

from hope_data.cli import main
from hope_data.documents import provenance


def test_page_shows_counts_samples_reasons_and_pictures(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    raw, clean = data / "raw" / "a", data / "clean" / "a"
    strict = tmp_path / "m.yaml"
    strict.write_text("kind: text\nfiles: [x]\nfilter: {language: '', min_chars: 500}\n")
    out = tmp_path / "strict"
    assert main(["filter", str(raw), "--out", str(out), "--manifest", str(strict)]) == 0
    page = tmp_path / "page"
    assert main(["look", str(clean), str(out), "--html", str(page), "--count", "2"]) == 0
    text = (page / "index.html").read_text()
    for src in re.findall(r"src='([^']+)'", text):
        assert (page / src).read_bytes().startswith(b"\x89PNG")
    names = {path.name for path in page.glob("*.png")}
    assert names == {
        "a-length.png",
        "a-language.png",
        "strict-length.png",
        "strict-language.png",
        "strict-dropped.png",
    }
    dropped = provenance(out)["dropped"]["too short"]
    assert f"too short: {dropped} of 300" in text
    assert text.count("<pre>") == 2 + 2 + 5
    assert "http" not in text.replace("https://huggingface", "")


def test_markup_in_a_document_is_text_on_the_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "a.txt").write_text("<script>alert(1)</script> " * 20)
    (tmp_path / "m.yaml").write_text(f"kind: text\nfiles: ['{tmp_path}/a.txt']\n")
    assert main(["acquire", "--manifest", str(tmp_path / "m.yaml"), "--out", str(tmp_path / "raw")]) == 0
    assert main(["look", str(tmp_path / "raw"), "--html", str(tmp_path / "page")]) == 0
    assert "<script>" not in (tmp_path / "page" / "index.html").read_text()
