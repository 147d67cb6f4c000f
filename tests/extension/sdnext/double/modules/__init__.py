"""What the extension uses of SD.Next, as its source has it in July 2026: names, signatures, and the order of calls."""
