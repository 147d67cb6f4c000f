"""The program's own LoRA, as far as it leaves something behind."""
