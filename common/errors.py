"""The user's mistakes: one exception, and how several problems are listed in its message."""


class UserError(Exception):
    """A mistake that the user can fix: the message says what was found and what to do."""


def bullets(problems: list[str], most: int = 20) -> str:
    """Problems as indented lines, with the number of those beyond `most`."""
    lines = problems[:most]
    if len(problems) > most:
        lines = [*lines, f"... and {len(problems) - most} more"]
    return "".join(f"\n  {line}" for line in lines)
