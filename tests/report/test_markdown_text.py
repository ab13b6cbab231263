import pytest

from q2n.report.markdown_text import in_markdown
from q2n.report.table_model import Column, Table, TableRow
from q2n.report.table_texts import markdown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("*.layers.0.*", r"\*.layers.0.\*"),
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("<eos> & <b>", r"\<eos> & \<b>"),
        ("&lt;", r"\&lt;"),
        ("`x` ~y~ $z$ [w](v)", r"\`x\` \~y\~ \$z\$ \[w](v)"),
        ("q_proj, _q_, __q__", r"q_proj, \_q\_, \_\_q\_\_"),
        ("two\n  lines", "two lines"),
        ("0.5 +- 0.01, 3-bit (#2)", "0.5 +- 0.01, 3-bit (#2)"),
    ],
)
def test_text_is_shown_as_it_is(text, shown) -> None:
    assert in_markdown(text) == shown


def test_headings_cells_and_captions_of_a_report_show_their_text() -> None:
    table = Table(
        name="p",
        title="p: <i>",
        columns=[Column("<b>", kind="label")],
        rows=[TableRow(["*x*"], "no *proj")],
        constants={"model": "*m*"},
    )
    lines = markdown([table], "").splitlines()
    assert r"## p: \<i>" in lines and r"| \<b> | refused |" in lines
    assert r"| \*x\* | no \*proj |" in lines and r"All rows: model \*m\*." in lines
