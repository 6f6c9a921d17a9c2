"""The HTTP door: STOW-RS and plain images in, receipts out."""
