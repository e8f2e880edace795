"""The page around everything: closed to the outside, with the library's licence and the record inside."""

import base64
import json
import re

import pytest

from syncattn.page import document, download, report


def test_a_report_needs_nothing_else():
    page = report("A <title> & more", "<p>body</p>")
    assert "default-src 'none'" in page and "<title>A &lt;title&gt; &amp; more</title>" in page
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'>\s]+""", page)
    assert not re.findall(r"@import|url\(|\bfetch\(|XMLHttpRequest|WebSocket|\bimport\(", page)
    assert "The MIT License" in page and "Leon Sorokin" in page
    assert "{{" not in page.split("<script")[0]


def test_what_is_filled_in_ends_no_script_and_fills_no_place():
    evil = "</script><script>alert(1)</script>{{body}}"
    page = document(evil, "body", data={"name": evil}, scripts=["1;"], note=evil)
    assert page.count("</script>") == 2 and "<script>alert" not in page
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert json.loads(found) == {"name": evil}


def test_numbers_that_json_has_not_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        document("t", "b", data={"x": float("nan")})


def test_the_record_comes_back_whole():
    record = json.dumps({"name": "ξ </script>", "x": [1.5]})
    link = download('re"port.json', record, "save <it>")
    assert 'download="re&quot;port.json"' in link and "save &lt;it&gt;" in link
    assert base64.b64decode(re.search(r"base64,([^\"]+)", link)[1]).decode() == record
