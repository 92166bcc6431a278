"""Numbers and lines for people."""


def number(value: float) -> str:
    """Return the shortest text that identifies a number, so that two settings never look alike."""
    return str(value) if isinstance(value, int) else repr(float(value) + 0.0).removesuffix(".0")


def one_line(text: str, limit: int = 300) -> str:
    """Return text, which may be untrusted, as one printable line. Cut the middle out of a long one."""
    line = text
    if not text.isprintable():
        line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return line if len(line) <= limit else f"{line[: limit // 2]} ... {line[5 - limit // 2 :]}"


def shortened(value: object, limit: int = 80) -> str:
    """Return the repr of a value. Cut off a long one."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
