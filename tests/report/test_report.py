from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gossipfl.errors import DataError
from gossipfl.records import load_run
from gossipfl.report import write_report
from gossipfl.report.network import Network
from gossipfl.report.nodes import node_columns, node_rows
from gossipfl.report.page import render_page

MakeRun = Callable[..., Path]

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """Tags in order, attributes, and text; complains of tags that do not close."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"src", "href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_the_page_is_complete_in_one_file(make_run: MakeRun) -> None:
    page = read(write_report(make_run()))
    assert len(page.links) == 3
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "link" not in page.tags
    text = " ".join(page.text)
    assert "digits with pace, 1 of 4 nodes Byzantine (sign-flip)" in text
    assert "0.900" in text  # test accuracy
    assert "100.0%" in text  # Byzantine models rejected
    assert "SIGKILL" not in text


def test_text_from_outside_is_escaped(make_run: MakeRun) -> None:
    page = read(write_report(make_run()))
    assert "script" not in page.tags
    assert any("<script>alert(1)</script>" in text for text in page.text)


def test_the_figures_are_saved_as_well(make_run: MakeRun) -> None:
    out = make_run()
    write_report(out)
    pictures = sorted((out / "figures").iterdir())
    assert [picture.name for picture in pictures] == ["filter.png", "learning.png", "network.png"]
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)


def test_the_same_records_give_the_same_page(make_run: MakeRun) -> None:
    out = make_run()
    assert write_report(out).read_bytes() == write_report(out).read_bytes()


@pytest.mark.parametrize("options", [{"rounds": 1}, {"accuracy": False}, {"finished": False}, {"nodes": 70}])
def test_unusual_runs_have_a_report_too(make_run: MakeRun, options: dict[str, int]) -> None:
    page = read(write_report(make_run(**options)))
    assert len(page.links) == 3
    assert ("unfinished" in " ".join(page.text)) == ("finished" in options)


def test_a_run_without_a_round_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("{}")
    assert read(write_report(tmp_path)).links == []


def test_a_folder_without_records_has_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no records"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rejections_are_shares_by_direction(make_run: MakeRun) -> None:
    run = load_run(make_run())
    network = Network.from_records(run.topology, [1])
    assert network.rejected[0, 1] == 1.0
    assert network.rejected[1, 0] == 0.0
    assert network.rejected[2, 3] == 0.0


def test_a_line_per_node(make_run: MakeRun) -> None:
    run = load_run(make_run(rounds=3))
    rows = node_rows(run)
    assert [row["name"] for row in rows] == ["node-0", "node-1", "node-2", "node-3"]
    assert (rows[0]["rejected_byzantine"], rows[0]["accepted_honest"]) == (3, 3)
    assert rows[0]["kilobytes"] == 1.0
    titles = [column.title for column in node_columns(rows)]
    assert "test accuracy" in titles
    assert "training (s)" not in titles  # nobody measured it
    digest = next(column for column in node_columns(rows) if column.key == "digest")
    assert [digest.cell(row) for row in rows] == ["ab", "–", "–", "–"]


def test_large_networks_list_some_nodes(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossipfl.report.page.LISTED_NODES", 2)
    html = render_page(load_run(make_run()), {})
    assert "The first 2 of 4 nodes." in html
    assert "node-2</td>" not in html


def test_graphs_too_large_to_be_seen_are_not_drawn(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gossipfl.report.page.DRAWN_NODES", 3)
    assert len(read(write_report(make_run())).links) == 2
