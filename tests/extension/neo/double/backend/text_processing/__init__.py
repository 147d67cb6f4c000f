"""What makes of prompts what the denoiser is given."""
