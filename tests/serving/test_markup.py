"""HTML: markup stays, texts change."""

import pytest

from regard.serving.markup import Markup


@pytest.mark.parametrize(
    ("html", "texts", "wanted"),
    [
        ("<p>le <b>chat</b> noir</p>", ["le", "chat", "noir"], "<p>LE <b>CHAT</b> NOIR</p>"),
        ("a &lt; b &amp; c", ["a < b & c"], "A &lt; B &amp; C"),
        ("<script>un</script>deux<!-- trois -->", ["deux"], "<script>un</script>DEUX<!-- trois -->"),
        ('<i translate="no">un<i>x</i></i><br>deux', ["deux"], '<i translate="no">un<i>x</i></i><br>DEUX'),
        ('<br translate="no">deux<img src="a"/>', ["deux"], '<br translate="no">DEUX<img src="a"/>'),
        ("<!doctype html>\n  un\n", ["un"], "<!doctype html>\n  UN\n"),
        ("un < deux", ["un < deux"], "UN &lt; DEUX"),
        ("un<script>deux <b>trois", ["un"], "UN<script>deux <b>trois"),  # nothing behind an open script is lost
        ("<style>a</b></STYLE >un<!-- deux", ["un<!-- deux"], "<style>a</b></STYLE >UN&lt;!-- DEUX"),
        ("<![un<![CDATA[<p>]]>", ["]]>"], "<![un<![CDATA[<p>]]&gt;"),
        ("<p title='un<deux'>un <a href=\"b>deux</a>", ["un", "deux"], "<p title='un<deux'>UN <a href=\"b>DEUX</a>"),
        ("<p\nTRANSLATE = 'no'>un<p>x</p></p><p data-x=translate=no>deux", ["deux"],
         "<p\nTRANSLATE = 'no'>un<p>x</p></p><p data-x=translate=no>DEUX"),
        ("<pre>AT&T</pre>AT&T", ["AT&T"], "<pre>AT&T</pre>AT&amp;T"),
        ("", [], ""),
    ],
)  # fmt: skip
def test_texts_between_tags_are_replaced(html: str, texts: list[str], wanted: str) -> None:
    markup = Markup(html, inline=False)
    assert markup.texts() == texts
    assert markup.filled([text.upper() for text in texts]) == wanted


@pytest.mark.parametrize(
    ("html", "texts", "wanted"),
    [
        ("<p>le <b>chat</b> noir</p>", ["le <b>chat</b> noir"], "<p>le <b>chat</b> noir!</p>"),
        ("<p>un</p><p><i>caf&eacute;</i> &amp; deux</p>", ["un", "<i>café</i> & deux"],
         "<p>un!</p><p><i>café</i> &amp; deux!</p>"),
        ("<p>&nbsp;</p><p>&nbsp;un &nbsp;</p>", ["", "un"], "<p>&nbsp;!</p><p>&nbsp;un! &nbsp;</p>"),
        ('<a title="&quot; x=&quot;1" href="?a=1&b">caf&eacute;</a> x',
         ['<a title="&quot; x=&quot;1" href="?a=1&b">café</a> x'],
         '<a title="&quot; x=&quot;1" href="?a=1&b">café</a> x!'),
        ('un <span translate="no">x</span> deux', ["un", "deux"], 'un! <span translate="no">x</span> deux!'),
        ("<script>a<b>c</b></script>", [], "<script>a<b>c</b></script>"),
        ("a &lt; b &amp;amp; c", ["a &lt; b &amp;amp; c"], "a &lt; b &amp;amp; c!"),
    ],
)  # fmt: skip
def test_elements_within_a_line_belong_to_a_text(html: str, texts: list[str], wanted: str) -> None:
    markup = Markup(html, inline=True)
    assert markup.texts() == texts
    assert markup.filled([f"{text}!" for text in texts]) == wanted
    assert Markup("a", inline=True).filled(["x & y"]) == "x &amp; y"


def test_damaged_html_is_taken() -> None:
    for html in ("<", "<p", "</", "</>", "<!--", "<!-->", "<![", "<?", "&#xffffffff;", "<a" * 1000, "<script>" * 100):
        for inline in (False, True):
            markup = Markup(html, inline)
            assert "".join(piece for _, piece in markup.pieces) == html
            markup.filled(markup.texts())


def test_a_number_of_thousands_of_digits_is_no_character() -> None:
    for inline in (True, False):
        markup = Markup("le chat &#" + "9" * 5000 + "; et &#x" + "f" * 5000 + "; dort &eacute;", inline)
        assert markup.texts() == ["le chat \ufffd et \ufffd dort é"]


def test_leading_zeros_of_a_character() -> None:
    assert Markup("<p>&#" + "0" * 4999 + "65;</p>", False).texts() == ["A"]
    assert Markup("<p>&#x" + "0" * 4999 + "41;&#0;</p>", True).texts() == ["A\ufffd"]
