"""The library of the stages and tools. docs/architecture.md lists its packages."""
