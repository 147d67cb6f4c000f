"""The user's LoRA files: names, hashes, search, notes and pictures. Neither torch nor a host is known here."""
