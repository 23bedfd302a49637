"""Numbers and times in a few letters, as tables show them."""

THOUSANDS = ("", "k", "M", "G", "T", "P", "E")


def short(number: float) -> str:
    """A number in three digits or more and a prefix, such as 859.5 M."""
    power = 0
    while abs(number) >= 1000 and power < len(THOUSANDS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:,.1f} {THOUSANDS[power]}" if power else f"{number:g}"


def duration(seconds: float) -> str:
    """A time in the unit that a reader expects; empty where there is none."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.2g} s" if seconds else ""
