"""A clip whose values are no numbers, as an error; torch-free."""

from __future__ import annotations

from tokenizer.settings import UserError


class NotFinite(UserError):
    """A clip that has NaN or infinity where it should have numbers; by default, as latents."""

    def __init__(
        self,
        row: int,
        reason: str = (
            "its latents are NaN or infinite: the tokenizer's weights are damaged, or its training "
            "diverged; copy or train it again"
        ),
    ) -> None:
        super().__init__(row, reason)
        self.row = row
        self.reason = reason

    def __str__(self) -> str:
        return f"clip {self.row} of the batch: {self.reason}"
