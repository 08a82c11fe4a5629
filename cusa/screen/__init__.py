"""What the stages show while they work: console, progress and reporters."""
