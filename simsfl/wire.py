"""Between clients and server."""

from __future__ import annotations

from torch import Tensor


class Wire:
    """Carries everything as it is; real devices put in what they sent (hw_profile/).

    Attributes:
        absent: positions in the cohort of clients of whom nothing arrives: the server learns without them, and the
            average is of the others. Never all of them.
    """

    absent: frozenset[int] = frozenset()

    def up(self, smashed_2Nchw: Tensor) -> Tensor:
        """What arrives of what the cohort sent; `absent` is then known. Rows of the absent are not looked at."""
        return smashed_2Nchw

    def down(self, gradient_Nchw: Tensor) -> None:
        """Bring the cohort the gradients of what it sent."""
