"""What a user hands in, rows and checkpoints: read, checked whole before any work, refused in one clear line."""
