"""What runners on a card share: its memory, and drawing tokens where the logits are."""
