"""Texts: a picture's parameters, prompts with other LoRAs, what the user is told. Neither torch nor a host is known."""
