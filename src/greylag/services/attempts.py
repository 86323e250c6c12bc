"""How often something is read, changed and written again while others change it."""

from greylag.domain.errors import ConflictError, GreylagError

_MOST = 5


class Attempts:
    """The attempts at changing one thing of those that ``PeopleStore.put`` keeps.

    Args:
        what: the thing, as people call it.
        error: what the last failure raises.
    """

    def __init__(self, what: str, error: type[GreylagError] = ConflictError) -> None:
        self._what = what
        self._error = error
        self._left = _MOST

    def failed(self) -> None:
        """Count an attempt for which others were too fast.

        Raises:
            GreylagError: that was the last one.
        """
        self._left -= 1
        if not self._left:
            raise self._error(f"Others changed {self._what} again and again.", hint="Try again.")
