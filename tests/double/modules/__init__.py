"""What the WebUI's package `modules` has, as far as extensions for LoRAs use it."""
