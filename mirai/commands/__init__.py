"""The commands of `mirai`, by what they are about. Parsing only: whatever costs time is imported when a command runs."""
