"""User mistakes: one exception, and how its message lists several problems."""


class UserError(Exception):
    """A mistake that the user can fix: the message says what was found and what to do."""


def bullets(problems: list[str], most: int = 20) -> str:
    """Problems as indented lines, and how many more than `most` there are."""
    lines = problems[:most]
    if len(problems) > most:
        lines = [*lines, f"... and {len(problems) - most} more"]
    return "".join(f"\n  {line}" for line in lines)
