"""Write examples/tutorial.ipynb from docs/tutorial.md: text becomes Markdown cells, Python blocks become code cells."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, NOTEBOOK = ROOT / "docs" / "tutorial.md", ROOT / "examples" / "tutorial.ipynb"
SITE = "../docs/"
"""Where links of the page lead from the notebook."""


def make_notebook(page: str) -> dict[str, Any]:
    """Return a notebook (format 4.5, without outputs) with the text and the code of a page."""
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(re.split(r"^```python$\n(.*?)^```$\n", page, flags=re.M | re.S)):
        text = part.strip()
        if not text:
            continue
        cell: dict[str, Any] = {"id": f"cell-{number}", "metadata": {}}
        if number % 2:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        else:
            cell["cell_type"] = "markdown"
            text = re.sub(r"\]\((?!https?:)", f"]({SITE}", text)
        cells.append({**cell, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


if __name__ == "__main__":
    text = json.dumps(make_notebook(PAGE.read_text("utf-8")), indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(text + "\n", "utf-8")
    print(NOTEBOOK)
