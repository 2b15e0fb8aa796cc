import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vggkit import errors
from vggkit.errors import VggkitError, one_line, shown


@given(st.one_of(st.text(st.characters()), st.binary()), st.integers(3, 200))
def test_what_is_shown_is_one_short_line_that_any_stream_can_hold(text, limit):
    written = shown(text, limit)
    assert written.isprintable()
    assert len(written) <= limit
    assert shown(written, limit) == written
    written.encode("utf-8")


def test_plain_text_is_shown_as_it_is_and_the_rest_as_escapes():
    assert shown("Катя's 猫 \\x.png") == "Катя's 猫 \\x.png"
    assert shown(b"caf\xc3\xa9\xff") == "café\\xff"
    assert shown("a\x1b]0;owned\x07\r\n\u202eb\ud800") == "a\\x1b]0;owned\\x07\\r\\n\\u202eb\\ud800"


def test_the_message_of_an_error_is_one_line_or_its_type():
    assert one_line(ValueError("a\n  b\x1b[2J")) == "a b\\x1b[2J"
    assert one_line(MemoryError()) == "MemoryError"
    assert len(one_line(ValueError("x" * 10**7))) == errors.ERROR_CHARACTERS


FAMILY = [kind for kind in vars(errors).values() if inspect.isclass(kind) and issubclass(kind, VggkitError)]


@pytest.mark.parametrize("kind", FAMILY)
def test_a_users_mistake_is_a_value_error_with_code_2(kind):
    assert kind.exit_code == (2 if issubclass(kind, ValueError) else 1)
