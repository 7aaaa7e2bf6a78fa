"""The notebook in examples/ is that of the tutorial page, whose code runs in test_docs, and its pictures are small."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")


def test_the_notebook_is_made_from_the_page() -> None:
    notebook = json.loads((ROOT / "examples" / "tutorial.ipynb").read_text("utf-8"))
    make_notebook = runpy.run_path(str(ROOT / "tools" / "make_notebook.py"))["make_notebook"]
    assert notebook == make_notebook(PAGE), "run tools/make_notebook.py"
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    blocks = [block.strip() for block in re.findall(r"^```python$\n(.*?)^```$", PAGE, re.M | re.S)]
    assert code == blocks and len(code) >= 5
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        else:
            for link in re.findall(r"\]\(([^)#]+)", "".join(cell["source"])):
                assert link.startswith("http") or (ROOT / "examples" / link).exists(), link


def test_pictures_of_the_tutorial_are_made_by_its_code_and_small() -> None:
    for name in re.findall(r"images/tutorial_(\w+)\.jpg", PAGE):
        assert f'save("{name}.png")' in PAGE
        assert (ROOT / "docs" / "images" / f"tutorial_{name}.jpg").stat().st_size < 100_000
