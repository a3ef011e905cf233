"""Tables that need no front end: rows of plain data, as text and as HTML."""

from insitu.twins.table import Table


def test_a_table_is_text_and_html_without_scripts():
    found = Table("Title <b>", ("site", "n"), [("<script>", "1")], "note", frozenset({"n"}))
    assert repr(found).splitlines() == ["Title <b>", "  site      n", "  <script>  1", "note"]
    html = found._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert 'align="right"' in html
    assert len(Table("none", ("a",), [])) == 0
    assert repr(Table("none", ("a",), [])) == "none"


def test_a_long_table_says_how_much_it_leaves_out():
    found = Table("long", ("a",), [(str(n),) for n in range(1000)])
    assert "… and 600 more" in repr(found)
    assert "… and 600 more" in found._repr_html_()


def test_rows_that_are_to_be_noticed_are():
    found = Table("models", ("name", "is"), [("a", "up"), ("b", "down")], marked=frozenset({1}))
    assert repr(found).splitlines()[2:] == ["  a     up", "! b     down"]
    assert "<b><code>down</code></b>" in found._repr_html_()
    assert "<b><code>up</code></b>" not in found._repr_html_()
