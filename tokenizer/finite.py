"""Values that are no numbers, refused where they would come in; torch-free."""

from __future__ import annotations

from tokenizer.settings import UserError


class NotFinite(UserError):
    """A clip for which a model gave NaN or infinity instead of latents."""

    def __init__(self, row: int) -> None:
        super().__init__(row)
        self.row = row

    def __str__(self) -> str:
        return f"clip {self.row} of the batch: {self.reason}"

    @property
    def reason(self) -> str:
        return (
            "its latents are NaN or infinite: the tokenizer's weights are damaged, or its training "
            "diverged; copy or train it again"
        )
