"""What the machine gives and may deny: a terminal, a place for compiled code, memory."""
