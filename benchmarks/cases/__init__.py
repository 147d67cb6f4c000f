"""What is measured, each part in a process of its own."""
