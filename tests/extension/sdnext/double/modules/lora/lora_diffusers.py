"""LoRAs that were loaded by PEFT."""

diffuser_loaded: list[str] = []
diffuser_scales: list[float] = []
