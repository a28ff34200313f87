"""The same rows on the screen, in Markdown and in JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from bothways.evaluation.tables import markdown, table, write_json

ROWS = [{"step": "tf-idf", "ndcg@10": 0.58761, "documents": 1234}, {"step": "mine", "ndcg@10": 0.4, "seconds": 1234.56}]


def test_markdown_aligns_numbers_and_shows_what_is_missing() -> None:
    assert markdown(ROWS) == (
        "| step | ndcg@10 | documents | seconds |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| tf-idf | 0.588 | 1,234 | - |\n"
        "| mine | 0.400 | - | 1,235 |\n"
    )


def test_the_screen_shows_the_same_cells() -> None:
    console = Console(width=99, record=True, file=io.StringIO())
    console.print(table("Scores", ROWS))
    shown = console.export_text()
    for cell in ("Scores", "ndcg@10", "0.588", "1,234", "0.400", "1,235"):
        assert cell in shown


def test_json_replaces_the_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_json(path, {"rows": ["old"]})
    write_json(path, {"rows": ROWS, "ümlaut": True})
    assert json.loads(path.read_text(encoding="utf-8")) == {"rows": ROWS, "ümlaut": True}
    assert [item.name for item in tmp_path.iterdir()] == ["rows.json"]
