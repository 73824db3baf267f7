"""Loss, schedule, loop, journal, checkpoint."""
