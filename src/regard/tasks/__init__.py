"""What each task trains on and how it is measured."""
