import logging

import pytest

from scamac_scale.host.printable import MAX_LETTERS, PrintableFormatter, one_line, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mG\x07", r"\x1b[31mG\x07"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("a\nerror: b\r\t", r"a\nerror: b\r\t"),
        ("\u202egnp\u2066\u2069", r"\u202egnp\u2066\u2069"),
        ("A\u200b\ufeff\u2028\u2029\u00ad", r"A\u200b\ufeff\u2028\u2029\xad"),
        ("\udc80\U000e0041", r"\udc80\U000e0041"),
        ("TNF-Ψ 遺伝子 Žižka é", "TNF-Ψ 遺伝子 Žižka é"),
        (r"C:\x1b", r"C:\x1b"),
    ],
)
def test_what_commands_a_terminal_is_escaped_and_letters_stay(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert one_line(text) == shown


def test_every_control_character_is_escaped() -> None:
    bad = [*range(32), *range(127, 160), *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
    assert printable("".join(map(chr, bad))).isprintable()


def test_an_object_that_cannot_be_shown_does_not_end_the_work() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("no")

    assert "cannot be shown" in printable(Odd())


def test_a_long_message_is_cut() -> None:
    assert one_line("x" * (MAX_LETTERS + 5)).endswith("... (5 more letters)")


def formatted(message: str, *args: object) -> str:
    record = logging.LogRecord("scamac_scale", logging.INFO, "", 0, message, args, None)
    return PrintableFormatter("%(message)s").format(record)


def test_a_log_line_keeps_its_own_line_feeds_and_none_of_a_name() -> None:
    assert formatted("genes:\n %s, %r, %d, %.1f", "a\nerror: \x1b", "b\n", 3, 0.25) == (
        "genes:\n a\\nerror: \\x1b, 'b\\n', 3, 0.2"
    )
    assert formatted("ready made \x1b\nx") == r"ready made \x1b\nx"
