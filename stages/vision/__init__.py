"""What the stages are made of: one idea a file, each importing only what stands before it in the README's list."""
